"""Commands that show what runs and waits."""
