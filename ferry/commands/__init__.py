"""The other commands: they look into Redis or at a model repository."""
