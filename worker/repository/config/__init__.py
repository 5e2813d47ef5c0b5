"""Reads a `config.pbtxt`."""
