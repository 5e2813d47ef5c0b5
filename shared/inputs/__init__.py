"""Encoded pictures and texts become the tensors that a model takes, as its spec says."""
