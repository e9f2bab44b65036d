"""Random labels determined by a key."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.functional.random import mixed_bits

__all__ = ["random_labels"]


def random_labels(labels: Tensor, classes: int, key: Tensor, *, exclude_true: bool = True) -> Tensor:
    r"""A uniformly random label for each row, determined by the row's key, without generator state.

    Args:
        labels: True labels, shape ``(N,)``.
        classes: Number of classes :math:`K`.
        key: Shape ``(N,)``, int64; the same key and label always give the same random label.
        exclude_true: Whether to draw from the :math:`K - 1` wrong labels. Otherwise the true label has probability
            :math:`1 / K`, as in the released code of SalUn.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If there are fewer than two classes.

    Example:
        >>> import torch
        >>> labels = torch.zeros(4, dtype=torch.int64)
        >>> random_labels(labels, 2, torch.arange(4))
        tensor([1, 1, 1, 1])

    References:
        Golatkar et al., *Eternal Sunshine of the Spotless Net*, arXiv:1911.04933.
    """
    if classes < 2:
        raise ValueError(f"Random labels need at least 2 classes, but the model has {classes} output.")
    bits = mixed_bits(key) >> 16  # the low bits of a product are mixed least
    if exclude_true:
        return (labels + 1 + bits % (classes - 1)) % classes
    return bits % classes
