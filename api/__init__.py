"""Servers for HTTP and gRPC: stateless."""
