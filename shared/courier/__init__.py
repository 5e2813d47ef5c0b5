"""Sends one process's requests together, collects answers."""
