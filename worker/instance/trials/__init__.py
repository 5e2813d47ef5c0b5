"""Processes that try a model."""
