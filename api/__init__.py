"""Servers for HTTP and gRPC: stateless, they know models from the registry alone."""
