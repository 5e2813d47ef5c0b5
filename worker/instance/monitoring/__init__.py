"""Counts rows and answers."""
