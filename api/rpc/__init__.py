"""The gRPC server, as Triton's clients speak it."""
