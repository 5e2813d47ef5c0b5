"""A model asked for each row of a file."""
