"""Kills processes under load and checks every answer: `make chaos`."""
