"""Sample models, each made by its folder's `make(directory)`."""
