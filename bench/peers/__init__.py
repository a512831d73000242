"""What a program would use instead: one small adapter a peer, all with one interface (`base`), started and stopped by the benchmark."""
