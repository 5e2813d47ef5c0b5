"""Pictures and texts become the tensors that a model takes."""
