"""The gRPC server: protocol v2 as Triton's clients speak it; `grpc` is the library's name."""
