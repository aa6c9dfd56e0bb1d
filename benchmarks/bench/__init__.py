"""Benchmark of the backbone and of other libraries: ``python -m benchmarks.bench``."""
