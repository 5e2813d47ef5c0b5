"""The command line: starts or calls the others."""
