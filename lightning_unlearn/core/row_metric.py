"""Base classes of metrics that keep values for each row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_unlearn.core.distributed import world_size

__all__ = ["IndexedMetric", "RowMetric"]


class RowMetric(Metric):
    """A metric whose states grow row by row and are concatenated over processes.

    States are flat and have the metric's own type, as torchmetrics requires for a process that has seen no row.
    """

    full_state_update = False
    is_differentiable = False

    def add_rows(self, name: str) -> None:
        """Declare a state."""
        self.add_state(name, [], dist_reduce_fx="cat")

    def append(self, name: str, values: Tensor) -> None:
        """Add the values of some rows to a state."""
        getattr(self, name).append(values.detach().reshape(-1).to(self.device, self.dtype))

    def values(self, name: str) -> Tensor:
        """All values of a state so far, flat; of all processes inside ``compute``."""
        state = getattr(self, name)
        return dim_zero_cat(state) if len(state) else torch.empty(0, device=self.device, dtype=self.dtype)


class IndexedMetric(RowMetric):
    """A metric of numbers a row, in fp64, that counts each row once.

    Rows are identified by their index, since distributed samplers repeat rows to give every process the same number,
    and questions can repeat in a set. The first value of a repeated row counts.

    Args:
        names: Names of the numbers that are kept of each row.
        sets: Names of the sets whose rows are numbered apart.
        **kwargs: Options of ``torchmetrics.Metric``.
    """

    def __init__(self, names: Sequence[str] = ("value",), sets: Sequence[str] = ("rows",), **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.names, self.sets = tuple(names), tuple(sets)
        for group in self.sets:
            for name in ("index", *self.names):
                self.add_rows(f"{group}_{name}")
        self.set_dtype(torch.float64)  # also of what torchmetrics gathers from a process without a row

    def record(self, index: Tensor | Sequence[int] | None, group: str = "rows", **numbers: Tensor) -> None:
        """Keep the numbers of some rows.

        Args:
            index: Row numbers, shape ``(B,)``; ``None`` numbers the rows as they come.
            group: The set that they are of.
            **numbers: For each name the numbers, shape ``(B,)``; NaN marks a row that is left out.

        Raises:
            ValueError: If there is no index although several processes run, or lengths differ.
        """
        count = len(numbers[self.names[0]])
        if lengths := {name: len(values) for name, values in numbers.items() if len(values) != count}:
            raise ValueError(f"{self.names[0]} has {count} rows, but others have as many as {lengths}. Pass one a row.")
        if index is None:
            if world_size() > 1:
                raise ValueError(
                    f"{type(self).__name__} needs index=, the numbers of the rows in their set, where several "
                    "processes run: samplers give some rows to two of them, and each is to count once."
                )
            first = sum(map(len, getattr(self, f"{group}_index")))
            index = range(first, first + count)
        index = torch.as_tensor(index).reshape(-1)
        if len(index) != count:
            raise ValueError(f"There are {len(index)} row numbers for {count} rows. Pass one a row.")
        self.append(f"{group}_index", index)
        for name in self.names:
            self.append(f"{group}_{name}", numbers[name])

    def unique_rows(self, group: str = "rows") -> dict[str, Tensor]:
        """Index and numbers of each row once, in the order of the index; of all processes inside ``compute``."""
        index = self.values(f"{group}_index")
        order = index.argsort(stable=True)
        index = index[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        if (repeated := int((~first).sum())) >= world_size():  # more than a sampler pads
            warnings.warn(
                f"{repeated} of {len(index)} rows came to {type(self).__name__} again under the same index, and count "
                "once. Number the rows of a set through all its batches, and call reset between two evaluations.",
                stacklevel=2,
            )
        return {name: self.values(f"{group}_{name}")[order[first]] for name in ("index", *self.names)}

    def kept(self, name: str = "value", group: str = "rows") -> Tensor:
        """The numbers of each row once, without NaN.

        Raises:
            ValueError: If there is no row with a number.
        """
        numbers = self.unique_rows(group)[name]
        there = ~numbers.isnan()
        if not there.any():
            raise ValueError(
                f"{type(self).__name__} has seen no rows{'' if group == 'rows' else f' of {group}'} that it can "
                "count. Call update with them first."
            )
        if left := int((~there).sum()):
            warnings.warn(
                f"{left} of {len(numbers)} rows have nothing to measure, such as no token, and {type(self).__name__} "
                "leaves them out.",
                stacklevel=2,
            )
        return numbers[there]
