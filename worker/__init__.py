"""Owns the models and the devices, knows nothing of HTTP."""
