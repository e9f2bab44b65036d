"""Nearest centroids of other classes and centroid distance for DUCK."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.functional.classification.adaptive_alpha import output_distance

__all__ = ["centroid_distance", "nearest_wrong_centroid"]


def nearest_wrong_centroid(features: Tensor, labels: Tensor, centroids: Tensor, classes: Tensor) -> Tensor:
    r"""Index of the nearest centroid of another class for each row, :math:`\arg\max_{c \ne y_i} \cos(h_i, \mu_c)`.

    Args:
        features: Features :math:`h`, shape ``(N, d)``.
        labels: Labels :math:`y`, shape ``(N,)``.
        centroids: Mean features :math:`\mu_c` of some classes, shape ``(M, d)``.
        classes: The class of each centroid, shape ``(M,)``.

    Returns:
        Rows of ``centroids``, shape ``(N,)``.

    Raises:
        ValueError: If a row has no centroid of another class.

    Example:
        >>> import torch
        >>> h, centroids = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> nearest_wrong_centroid(h, torch.tensor([7]), centroids, torch.tensor([7, 8, 9]))
        tensor([2])
    """
    own = labels == classes[:, None]
    if own.all(0).any():
        raise ValueError(
            f"There are centroids of the classes {sorted(set(classes.tolist()))} only, so rows of the classes "
            f"{sorted(set(labels[own.all(0)].tolist()))} have none of another class. Give retain rows of more classes."
        )
    return output_distance(centroids, features).masked_fill(own, float("inf")).argmin(0)


def centroid_distance(features: Tensor, centroids: Tensor) -> Tensor:
    r"""Cosine distance of each row from its centroid, :math:`1 - \cos(h_i, \mu_i)`.

    Args:
        features: Features :math:`h`, shape ``(N, d)``.
        centroids: The centroid of each row, shape ``(N, d)``.

    Returns:
        Shape ``(N,)``, fp32, in [0, 2].

    Example:
        >>> import torch
        >>> centroid_distance(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor([0., 1.])
    """
    return 1 - F.cosine_similarity(features.float(), centroids.float())
