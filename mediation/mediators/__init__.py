"""What can be changed in a run: neurons and attention heads.

The catalogue; sweeps, by one descent and by full passes; gradients, interpolation, batches.
"""
