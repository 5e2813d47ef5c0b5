"""Sample models for Ferry, each made by its folder's `make(directory)`."""
