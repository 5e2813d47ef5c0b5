"""The gRPC server: protocol v2 as Triton's clients speak it."""
