"""Kills processes under load: `make chaos`."""
