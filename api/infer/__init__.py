"""One request, whatever transport brought it: ask, wait, write the answer."""
