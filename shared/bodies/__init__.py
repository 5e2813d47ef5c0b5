"""Large tensors beside Redis."""
