"""Connections to Redis: single commands, and wires."""
