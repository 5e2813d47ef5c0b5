"""One inference request of any transport: ask, wait, render."""
