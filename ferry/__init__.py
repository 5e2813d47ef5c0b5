"""The command line: starts or calls api, worker and samples, and holds no logic of theirs."""
