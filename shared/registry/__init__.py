"""What is served, by whom, what is desired."""
