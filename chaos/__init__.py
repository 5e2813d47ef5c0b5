"""Kills processes under load, checks answers: `make chaos`."""
