"""Benchmarks of this project, run from a checkout. They are not installed."""
