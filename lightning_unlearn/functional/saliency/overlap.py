"""Overlap of two masks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["mask_iou"]


def mask_iou(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    r"""Intersection over union of the weights that may move: :math:`|A \cap B| / |A \cup B|`.

    For two independent random masks of density :math:`\rho` it is :math:`\rho / (2 - \rho)`.

    Args:
        first: Boolean masks by parameter name.
        second: Boolean masks of another method.

    Returns:
        In [0, 1]; 1 if both are empty.

    Raises:
        ValueError: If the masks belong to different parameters.

    Example:
        >>> import torch
        >>> mask_iou({"w": torch.tensor([True, True, False])}, {"w": torch.tensor([False, True, True])})
        0.3333333333333333
    """
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        raise ValueError(
            f"The masks are of {len(first)} and {len(second)} parameters that differ in name or shape. Compare masks "
            "of the same model and the same `parameters`."
        )
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    either = sum(int((first[name] | second[name]).sum()) for name in first)
    return both / either if either else 1.0
