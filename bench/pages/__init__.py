"""What open pages cost the requests."""
