"""Comparisons of many runs, resumable."""

from lightning_unlearn.benchmarks.classification import bench_classification
from lightning_unlearn.benchmarks.entries import FACTS, WEIGHTS, Entry
from lightning_unlearn.benchmarks.facts import bench_facts

__all__ = ["FACTS", "WEIGHTS", "Entry", "bench_classification", "bench_facts"]
