"""What each tool reaches by hand."""
