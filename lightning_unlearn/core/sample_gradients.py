"""The gradient of each row of a batch, of all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from lightning_unlearn.core.pairing import row_count
from lightning_unlearn.core.scores import Batch

__all__ = ["rows_of", "sample_gradients"]


def sample_gradients(
    value: Callable[[LightningModule, Batch], Tensor], module: LightningModule, names: Iterable[str], batch: Batch
) -> dict[str, Tensor]:
    """Gradients of a number that each row of a batch has, in one vectorized pass.

    Args:
        value: ``(module, batch of one row) -> scalar``. Operations whose shape depends on values, such as choosing
            supervised tokens, can't be vectorized.
        module: In evaluation mode.
        names: Parameters to differentiate by.
        batch: Tensors have the rows in dimension 0.

    Returns:
        For each name, a tensor of shape ``(B, *parameter.shape)``.
    """
    parameters = dict(module.named_parameters())
    weights = {f"module.{name}": parameters[name].detach() for name in names}
    reader = _Reader(value, module)

    def of_row(weights: dict[str, Tensor], row: Batch) -> Tensor:
        return functional_call(reader, weights, (tree_map(_with_batch, row),))

    dims = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, batch)
    gradients = vmap(grad(of_row), in_dims=(None, dims))(weights, batch)
    return {name.removeprefix("module."): g for name, g in gradients.items()}


def rows_of(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of at most so many rows."""
    for start in range(0, row_count(batch), size):
        part = slice(start, start + size)
        yield tree_map(lambda leaf, part=part: leaf[part] if isinstance(leaf, Tensor) else leaf, batch)


def _with_batch(leaf: Any) -> Any:
    return leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf


class _Reader(nn.Module):
    """A function of a module as a module, whose weights ``functional_call`` can replace."""

    def __init__(self, value: Callable[[LightningModule, Batch], Tensor], module: LightningModule) -> None:
        super().__init__()
        self.value, self.module = value, module

    def forward(self, row: Batch) -> Tensor:
        return self.value(self.module, row)
