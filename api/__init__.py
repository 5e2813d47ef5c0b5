"""HTTP in, HTTP out: stateless, knows models only by what the registry says."""
