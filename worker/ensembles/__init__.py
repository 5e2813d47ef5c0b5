"""Ensembles: a request's tensors go from step model to step model, through their own queues."""
