"""Generated protobuf and gRPC code (`make proto`); its classes stop at `transport/`, `node/` and `client/`."""
