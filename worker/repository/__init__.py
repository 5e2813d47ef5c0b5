"""Finds and reads the models of a repository."""
