"""Models and versions in Redis: what is served, by whom, what is desired."""
