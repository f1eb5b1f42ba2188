"""Benchmarks: the library against the straightforward way, both in one run. `python -m tests.bench` runs them all."""
