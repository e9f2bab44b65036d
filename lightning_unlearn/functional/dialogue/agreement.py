"""Agreement between predicted and true classes, for many sets at a time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["class_counts", "cohen_kappa", "macro_f1", "macro_recall"]


def class_counts(predicted: Tensor, true: Tensor, classes: int) -> Tensor:
    """Number of times that each class is predicted for each true class.

    Args:
        predicted: Class numbers, shape ``(..., N)``, int64.
        true: True class numbers, same shape.
        classes: Number of classes.

    Returns:
        Shape ``(..., classes, classes)``, fp64: true class, then predicted class.
    """
    cells = (true * classes + predicted).reshape(-1, true.shape[-1])
    counts = torch.zeros(len(cells), classes * classes, dtype=torch.float64, device=true.device)
    counts.scatter_add_(1, cells, torch.ones_like(cells, dtype=torch.float64))
    return counts.reshape(*true.shape[:-1], classes, classes)


def macro_f1(counts: Tensor) -> Tensor:
    r"""Mean F1 of the classes that occur among predictions or truth.

    $$F_c = \frac{2\,TP_c}{2\,TP_c + FP_c + FN_c}$$

    Args:
        counts: From `class_counts`, shape ``(..., C, C)``.

    Returns:
        Shape ``(...)``, fp64.

    Example:
        >>> true, predicted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
        >>> round(macro_f1(class_counts(predicted, true, 3)).item(), 6)
        0.655556
    """
    hits, total = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1) + counts.sum(-2)
    return (2 * hits / total.clamp(min=1)).sum(-1) / (total > 0).sum(-1)


def macro_recall(counts: Tensor) -> Tensor:
    """Mean recall of all classes (unweighted average recall); that of a class without rows is 0.

    Args:
        counts: From `class_counts`, shape ``(..., C, C)``.

    Returns:
        Shape ``(...)``, fp64.

    Example:
        >>> true, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
        >>> macro_recall(class_counts(predicted, true, 2)).item()
        0.75
    """
    return (counts.diagonal(dim1=-2, dim2=-1) / counts.sum(-1).clamp(min=1)).mean(-1)


def cohen_kappa(counts: Tensor) -> Tensor:
    r"""Cohen's kappa, the agreement beyond chance.

    $$\kappa = \frac{p_o - p_e}{1 - p_e}$$

    Args:
        counts: From `class_counts`, shape ``(..., C, C)``.

    Returns:
        Shape ``(...)``, fp64; NaN if both sides consist of one and the same class.

    Example:
        >>> true, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
        >>> cohen_kappa(class_counts(predicted, true, 2)).item()
        0.5
    """
    shares = counts / counts.sum((-2, -1), keepdim=True)
    observed = shares.diagonal(dim1=-2, dim2=-1).sum(-1)
    chance = (shares.sum(-1) * shares.sum(-2)).sum(-1)
    return (observed - chance) / (1 - chance)
