"""Each tool by hand."""
