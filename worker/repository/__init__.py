"""Finds models in a repository and reads their configuration."""
