"""A language model whose forward pass can be resumed.

Checkpoints, architectures, the forward pass, products, read-out, attention, masked models.
"""
