"""Reads exported programs."""
