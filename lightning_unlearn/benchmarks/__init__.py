"""Benchmarks: comparisons of many runs, each in a fresh process, that can be killed and resumed."""
