"""Makes a version faster."""
