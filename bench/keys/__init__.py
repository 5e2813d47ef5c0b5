"""Keys' cost."""
