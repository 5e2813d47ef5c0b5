"""Bodies to checked tensors, results to bodies."""
