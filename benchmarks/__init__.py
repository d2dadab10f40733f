"""Benchmarks: each prints a table and writes JSON that the docs quote; run with ``python -m benchmarks.speed``."""
