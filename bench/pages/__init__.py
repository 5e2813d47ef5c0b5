"""Pages' cost."""
