"""The process of one model instance: load, warm up, then claim, compute, publish."""
