"""Comparisons of many runs, resumable."""

from lightning_unlearn.benchmarks.facts import FACTS, Entry, bench_facts

__all__ = ["FACTS", "Entry", "bench_facts"]
