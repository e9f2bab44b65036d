"""Task vector negation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["negate_task_vector"]


def negate_task_vector(
    start: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], *, alpha: float = 1.0
) -> dict[str, Tensor]:
    r"""Subtract the change made by fine-tuning: :math:`\theta = \theta_0 - \alpha (\theta_{ft} - \theta_0)`.

    Computed in fp32 or wider and rounded once, to the type of the starting value. Tensors that are not of a floating
    type, such as counters, keep their starting value. A weight that fine-tuning did not change stays bit-identical.

    Args:
        start: Weights :math:`\theta_0` by name.
        finetuned: Weights :math:`\theta_{ft}` after fine-tuning on the forget rows, by the same names and of the same
            shapes.
        alpha: Step :math:`\alpha > 0`, in units of the task vector.

    Returns:
        New tensors by the same names.

    Raises:
        ValueError: If the names differ.

    Example:
        >>> start, finetuned = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 2.0])}
        >>> negate_task_vector(start, finetuned, alpha=2.0)
        {'w': tensor([0., 2.])}

    References:
        Ilharco et al., *Editing Models with Task Arithmetic*, arXiv:2212.04089.
    """
    if start.keys() != finetuned.keys():
        odd = sorted(start.keys() ^ finetuned.keys())
        raise ValueError(
            f"A task vector goes from weights to weights of the same names, but {len(odd)} names are in one of the two "
            f"only, such as {odd[0]!r}."
        )
    return {name: _negated(value, finetuned[name], alpha) for name, value in start.items()}


def _negated(start: Tensor, finetuned: Tensor, alpha: float) -> Tensor:
    if not start.is_floating_point():
        return start.clone()
    wide = torch.promote_types(start.dtype, torch.float32)
    return (start.to(wide) - alpha * (finetuned.to(wide) - start.to(wide))).to(start.dtype)
