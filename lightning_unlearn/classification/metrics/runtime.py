"""What unlearning cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["RTE", "Cost", "wall_clock"]


class Cost(NamedTuple):
    """What an unlearning run cost.

    Args:
        seconds: Wall clock, of the slowest process.
        steps: Optimizer updates, of the process that made most; all make the same in data-parallel runs.
        samples: Rows processed, over all processes.
    """

    seconds: float
    steps: int
    samples: int


@contextmanager
def wall_clock() -> Iterator[list[float]]:
    """Seconds that the body takes, with all work on a CUDA device finished; appended to the list when it ends.

    Yields:
        A list, empty until the body has ended.

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


class RTE(Metric):
    """Run-time efficiency: wall clock of the unlearning procedure, masks and importances included, evaluation excluded.

    At least 0 seconds; lower is better, and the retrained model's is the figure to beat. Time on a shared machine is
    noisy, so rows and steps are reported beside it.

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

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = False
    seconds: Tensor
    steps: Tensor
    samples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("seconds", torch.tensor(0.0), dist_reduce_fx="max")
        self.add_state("steps", torch.tensor(0), dist_reduce_fx="max")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, seconds: float, steps: int = 0, samples: int = 0) -> None:
        """Add a stretch of work: its wall clock, optimizer updates and rows processed, forget and retain together."""
        if not 0 <= seconds < float("inf") or steps < 0 or samples < 0:
            raise ValueError(f"Cost can't be negative or infinite, but got {seconds} s, {steps} steps, {samples} rows.")
        self.seconds += seconds
        self.steps += steps
        self.samples += samples

    @contextmanager
    def measure(self, steps: int = 0, samples: int = 0) -> Iterator[None]:
        """Add the wall clock of the body; evaluate outside of it."""
        with wall_clock() as seconds:
            yield
        self.update(seconds[0], steps, samples)

    def compute(self) -> Cost:
        """The cost so far."""
        return Cost(float(self.seconds), int(self.steps), int(self.samples))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
