"""Decodes requests, pictures."""
