"""An ensemble's process."""
