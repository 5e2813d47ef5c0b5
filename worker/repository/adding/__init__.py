"""Turns files into versions of models."""
