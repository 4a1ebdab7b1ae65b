"""Benchmarks: what `tools/bench_*.py` share. `compare` times, `machine` says on what, `table` prints."""
