"""Benchmarks, each beside its peer in one run, in turns. `make bench [BENCH="brokers processors latency startup"]`."""
