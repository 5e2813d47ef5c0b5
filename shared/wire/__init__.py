"""Connections to Redis: commands, wires."""
