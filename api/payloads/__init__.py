"""Request bodies to checked tensors and results back to bodies, for each protocol."""
