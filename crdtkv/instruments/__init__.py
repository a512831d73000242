"""What the instruments share, the demo and the benchmarks: the lag meter, and the frame of a page that needs no network."""
