"""Base class of metrics that keep a value for each row."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

__all__ = ["RowMetric"]


class RowMetric(Metric):
    """A metric whose states grow row by row and are concatenated over processes.

    States are flat and of the metric's own type, as torchmetrics needs them where a process has not seen any row.
    """

    full_state_update = False
    is_differentiable = False

    def add_rows(self, name: str) -> None:
        """Declare a state."""
        self.add_state(name, [], dist_reduce_fx="cat")

    def append(self, name: str, values: Tensor) -> None:
        """Add the values of some rows to a state."""
        getattr(self, name).append(values.reshape(-1).to(self.dtype))

    def values(self, name: str) -> Tensor:
        """All values of a state so far, flat; of all processes inside ``compute``."""
        state = getattr(self, name)
        return dim_zero_cat(state) if len(state) else torch.empty(0, device=self.device)
