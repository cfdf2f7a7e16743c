"""A language model whose forward pass can be resumed: checkpoints, parts, forward, products, read-out, attention, masked models."""
