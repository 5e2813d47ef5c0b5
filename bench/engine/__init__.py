"""An instance's cost."""
