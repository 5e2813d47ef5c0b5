"""What is served, by whom, and what is wanted."""
