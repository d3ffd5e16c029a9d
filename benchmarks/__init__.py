"""Benchmarks: ratios and rates of one machine, run by `make bench`."""
