"""Decodes pictures."""
