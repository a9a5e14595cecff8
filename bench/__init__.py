"""Benchmarks: ratios against a peer, interleaved in one run.  `make bench` runs them all."""
