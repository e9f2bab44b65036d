"""A metric that keeps rows, and the same metric over seeds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn.classification.metrics.seeds import SeedSummary, over_seeds
from lightning_unlearn.core.checks import finite

__all__ = ["RowMetric", "SeedMetric"]


class RowMetric(Metric):
    """A metric whose states are tables that grow row by row and are concatenated over processes."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tables: dict[str, tuple[int, torch.dtype]] = {}

    def add_rows(self, name: str, columns: int, dtype: torch.dtype = torch.float32) -> None:
        """Declare a table.

        Args:
            name: Name of the state.
            columns: Number of its columns.
            dtype: Type of its values.
        """
        self.add_state(name, [], dist_reduce_fx="cat")
        self._tables[name] = (columns, dtype)

    def rows(self, name: str) -> Tensor:
        """All rows of a table so far, shape ``(N, columns)``; of all processes inside ``compute``."""
        columns, dtype = self._tables[name]
        state: Any = getattr(self, name)
        parts = [state] if isinstance(state, Tensor) else state
        return torch.cat(parts) if parts else torch.empty(0, columns, dtype=dtype, device=self.device)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As in torchmetrics, which however can't gather tables from a process that has seen no row."""
        for name in self._tables:
            state = getattr(self, name)
            if isinstance(state, list) and not state:
                state.append(self.rows(name))
        super().sync(*args, **kwargs)


class SeedMetric(RowMetric):
    """One number a seed; computes their mean, spread and confidence interval.

    Args:
        level: Level of the confidence interval, in (0, 1).

    Raises:
        ValueError: If the level is out of range.
    """

    values: list[Tensor]

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), such as 0.95, but got {level}.")
        self.level = level
        self.add_rows("values", 1, torch.float64)

    def add(self, value: float) -> None:
        """Count one seed."""
        self.values.append(torch.tensor([[value]], dtype=torch.float64, device=self.device))

    def compute(self) -> SeedSummary:
        """Mean, standard deviation and half-width of the confidence interval over the seeds."""
        values = self.rows("values")[:, 0]
        finite("seeds", values)
        return over_seeds(values, self.level)
