"""Package `crdtkv.v1`, generated from `proto/crdtkv/pb/v1/` (`make proto`)."""
