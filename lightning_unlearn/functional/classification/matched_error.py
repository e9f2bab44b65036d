"""Error on held-out rows, weighted to the class distribution of the forget rows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["matched_error"]


def matched_error(wrong: Tensor, labels: Tensor, like: Tensor) -> Tensor:
    r"""Error on held-out rows, weighted to match the classes of the forget rows.

    .. math:: \sum_c \frac{n_c(D_f)}{|D_f|}\, \mathrm{err}_c(D_v)

    This is the expected error of a validation set drawn with the class distribution of :math:`D_f`.

    Args:
        wrong: Whether each held-out row is misclassified, shape ``(V,)``.
        labels: Labels of the held-out rows, shape ``(V,)``.
        like: Labels of the forget rows, shape ``(N,)``.

    Returns:
        Fraction from 0 to 1, a scalar in fp64.

    Raises:
        ValueError: If a class of the forget rows has no held-out row.

    Example:
        >>> wrong, labels = torch.tensor([True, False, True, True]), torch.tensor([0, 0, 1, 2])
        >>> matched_error(wrong, labels, like=torch.tensor([0, 0, 0, 1]))
        tensor(0.6250, dtype=torch.float64)

    References:
        Kurmanji et al., *Towards Unbounded Machine Unlearning*, arXiv:2302.09880.
    """
    classes, counts = like.unique(return_counts=True)
    missing = classes[~torch.isin(classes, labels)]
    if len(missing):
        raise ValueError(f"The classes {missing[:8].tolist()} of the forget rows have no held-out row.")
    rates = torch.stack([wrong[labels == c].double().mean() for c in classes])
    return (rates * counts).sum() / counts.sum()
