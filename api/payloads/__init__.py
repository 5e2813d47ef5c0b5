"""Request bodies to checked tensors, results to bodies, for each protocol."""
