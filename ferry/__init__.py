"""The command line: starts or calls the others, and holds no logic of theirs."""
