"""Kills processes: `make chaos`."""
