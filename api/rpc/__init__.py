"""gRPC in, gRPC out: v2 as Triton's clients speak it. `grpc` itself is the library's name."""
