"""Processes that read large bodies."""
