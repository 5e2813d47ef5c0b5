"""Models and versions in Redis: which are served, by whom, which are desired."""
