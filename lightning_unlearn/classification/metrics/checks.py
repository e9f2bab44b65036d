"""Checks of the inputs of classifier metrics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_unlearn.core.checks import finite

__all__ = ["check_outputs", "check_same_keys"]


def check_outputs(logits: Tensor, labels: Tensor) -> None:
    """Reject tensors that are not a classifier's outputs and labels.

    Args:
        logits: Shape ``(N, K)``, floating point, ``K >= 2``.
        labels: Shape ``(N,)``, integers in ``[0, K)``.

    Raises:
        ValueError: If a shape, a type or a label is wrong, there are no rows, or a logit is NaN or infinite.
    """
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape (N, K) with K >= 2 classes, but got {tuple(logits.shape)} "
            f"{logits.dtype}. Write a binary output z of one column as the two logits (0, z)."
        )
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be integers of shape ({len(logits)},), one a row of the logits, but got "
            f"{tuple(labels.shape)} {labels.dtype}. Pass class numbers, not one-hot rows."
        )
    if len(logits) == 0:
        raise ValueError("There are no rows: a metric of an empty set is undefined. Leave this set out.")
    finite("logits", logits)
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels must be in [0, {logits.shape[1]}), but lie in [{int(labels.min())}, {int(labels.max())}]. "
            "Undo markings such as -y-1 of forgotten rows, and keep all outputs of the model."
        )


def check_same_keys(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> None:
    """Refuse to compare two models by different metrics.

    Args:
        unlearned: Named numbers of the unlearned model.
        retrained: The same numbers of the retrained model.

    Raises:
        ValueError: If the names differ, there are none, or a number is NaN or infinite.
    """
    if unlearned.keys() != retrained.keys() or not unlearned:
        raise ValueError(
            f"Both models need the same metrics, but unlearned has {sorted(unlearned)} and retrained "
            f"{sorted(retrained)}. Measure both on the same sets."
        )
    finite("metrics", torch.tensor([*unlearned.values(), *retrained.values()], dtype=torch.float64))
