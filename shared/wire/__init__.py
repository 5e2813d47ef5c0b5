"""Connections to Redis: a client for single commands, wires for the hot path."""
