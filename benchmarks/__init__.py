"""Benchmarks: each prints tables and writes JSON that the docs quote. Run one with ``python -m benchmarks.speed``."""
