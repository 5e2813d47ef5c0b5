"""Processes that try a model, or run it once to learn what it gives."""
