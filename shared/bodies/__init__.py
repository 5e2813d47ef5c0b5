"""Large tensors in shared memory."""
