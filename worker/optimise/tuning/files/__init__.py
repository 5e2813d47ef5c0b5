"""Writes the variants."""
