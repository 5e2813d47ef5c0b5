"""Their children."""
