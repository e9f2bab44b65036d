"""Cost of unlearning: wall-clock time, optimizer steps and rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from lightning_unlearn.core.distributed import gather_objects

__all__ = ["RTE", "Cost", "wall_clock"]


class Cost(NamedTuple):
    """Cost of an unlearning run.

    Args:
        seconds: Wall-clock time of the slowest process.
        steps: Optimizer updates; in data-parallel runs every process makes the same number.
        samples: Rows read by all processes.
    """

    seconds: float
    steps: int
    samples: int


@contextmanager
def wall_clock() -> Iterator[list[float]]:
    """Measure the duration of the body in seconds, including all work on a CUDA device.

    Yields:
        A list, empty until the body has ended, then with the seconds.

    Example:
        >>> with wall_clock() as seconds:
        ...     time.sleep(0.01)
        >>> seconds[0] >= 0.01
        True
    """
    _synchronize()
    seconds: list[float] = []
    start = time.perf_counter()
    try:
        yield seconds
    finally:
        _synchronize()
        seconds.append(time.perf_counter() - start)


class RTE:
    """Run-time efficiency: wall-clock time of unlearning, including masks and importances, without evaluation.

    At least 0 seconds; lower is better, and the time of retraining is the one to beat. Time on a shared machine is
    noisy, so rows and steps are counted too.

    Raises:
        ValueError: If a number is negative or not finite.

    Example:
        >>> rte = RTE()
        >>> rte.update(seconds=2.0, steps=10, samples=640)
        >>> with rte.measure(steps=1, samples=64):
        ...     pass
        >>> rte.compute().samples
        704

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """

    def __init__(self) -> None:
        self._cost = Cost(0.0, 0, 0)

    def update(self, seconds: float, steps: int = 0, samples: int = 0) -> None:
        """Add this process's work: wall-clock time, optimizer updates, and rows read (forget and retain together)."""
        if not 0 <= seconds < float("inf") or steps < 0 or samples < 0:
            raise ValueError(f"Cost can't be negative or infinite, but got {seconds} s, {steps} steps, {samples} rows.")
        self._cost = Cost(self._cost.seconds + seconds, self._cost.steps + steps, self._cost.samples + samples)

    @contextmanager
    def measure(self, steps: int = 0, samples: int = 0) -> Iterator[None]:
        """Add the wall-clock time of the body; evaluate outside it."""
        with wall_clock() as seconds:
            yield
        self.update(seconds[0], steps, samples)

    def compute(self) -> Cost:
        """The cost so far, over all processes. A collective call."""
        seconds, steps, samples = zip(*gather_objects(self._cost), strict=True)
        return Cost(max(seconds), max(steps), sum(samples))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
