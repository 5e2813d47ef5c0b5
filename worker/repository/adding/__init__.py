"""Turns files into versions."""
