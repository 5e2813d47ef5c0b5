"""Gives each instance its GPU."""
