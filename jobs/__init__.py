"""Slow work beside the requests."""
