"""Measures the backbone beside its peers: ``python -m benchmarks.bench``."""
