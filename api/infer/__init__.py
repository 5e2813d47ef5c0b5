"""One inference request, whatever transport brought it: ask, wait, render the answer."""
