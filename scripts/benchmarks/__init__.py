"""Benchmarks: ``python -m scripts.benchmarks.NAME``."""
