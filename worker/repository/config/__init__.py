"""Reads the blocks of a `config.pbtxt`."""
