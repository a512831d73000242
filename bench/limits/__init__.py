"""What nothing built on the same parts can beat: bare gRPC calls, a bare chain of processes, a bare append to a file."""
