"""Adaptive smoothing rate of UGradSL, based on the similarity of forget and retain rows."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Distance", "Rule", "adaptive_alpha", "output_distance"]

Distance = Literal["cosine", "tv", "euclid"]
Rule = Literal["isolation", "density"]


@torch.no_grad()
def output_distance(retain_logits: Tensor, forget_logits: Tensor, distance: Distance = "cosine") -> Tensor:
    r"""Pairwise distance between the model's outputs for retain and forget rows, in [0, 1].

    Args:
        retain_logits: Logits :math:`z^r_i`, shape ``(R, K)``.
        forget_logits: Logits :math:`z^f_j`, shape ``(F, K)``.
        distance: ``"cosine"``: :math:`(1 - \cos(z^r_i, z^f_j)) / 2`; ``"tv"``: total variation
            :math:`\tfrac12 \lVert p^r_i - p^f_j \rVert_1` of the probabilities; ``"euclid"``: Euclidean distance of the
            logits, relative to the largest in the batch.

    Returns:
        Shape ``(R, F)``, fp32.

    Example:
        >>> output_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        tensor([[0.0000, 0.5000, 1.0000]])
    """
    retain, forget = retain_logits.float(), forget_logits.float()
    if distance == "cosine":
        with torch.autocast(retain.device.type, enabled=False):  # autocast would multiply in half precision
            return ((1 - F.normalize(retain, dim=1) @ F.normalize(forget, dim=1).T) / 2).clamp(0, 1)
    if distance == "tv":
        return torch.cdist(retain.softmax(1), forget.softmax(1), p=1.0) / 2
    if distance == "euclid":
        apart = torch.cdist(retain, forget, compute_mode="donot_use_mm_for_euclid_dist")
        return apart / apart.max().clamp(min=torch.finfo(apart.dtype).tiny)
    raise ValueError(f"distance must be 'cosine', 'tv' or 'euclid', but got {distance!r}.")


def adaptive_alpha(
    retain_logits: Tensor,
    forget_logits: Tensor,
    *,
    beta: float = 0.5,
    distance: Distance = "cosine",
    rule: Rule = "isolation",
    scale: float = 1.0,
) -> Tensor:
    r"""Rate :math:`\alpha_j \le 0` of each forget row, from the share of retain rows closer than :math:`\beta`.

    .. math:: s_j = \frac{1}{|B_r|} \sum_i \mathbb 1[d_{ij} < \beta]

    The paper's formula :math:`\alpha_j = s_j` grows with the density of a row's neighbourhood, while its argument, that
    a row among many similar ones needs less smoothing, implies the opposite; its sign is also that of ordinary
    smoothing. Both rules are available here, with the negative sign that the method needs.

    Args:
        retain_logits: Logits of the retain rows, shape ``(R, K)``.
        forget_logits: Logits of the forget rows, shape ``(F, K)``.
        beta: Distance :math:`\beta` below which two rows are similar.
        distance: See [`output_distance`][lightning_unlearn.functional.classification.adaptive_alpha.output_distance].
        rule: ``"isolation"``: :math:`\alpha_j = -scale\,(1 - s_j)`, the argument; ``"density"``:
            :math:`\alpha_j = -scale\, s_j`, the formula.
        scale: Largest magnitude of a rate.

    Returns:
        Shape ``(F,)``, fp32, without gradient.

    Example:
        >>> z = torch.eye(2)
        >>> adaptive_alpha(z, z, beta=0.4)
        tensor([-0.5000, -0.5000])

    References:
        Di et al., *Label Smoothing Improves Machine Unlearning*, arXiv:2406.07698.
    """
    if rule not in ("isolation", "density"):
        raise ValueError(f"rule must be 'isolation' or 'density', but got {rule!r}.")
    share = (output_distance(retain_logits, forget_logits, distance) < beta).float().mean(0)
    return -scale * (share if rule == "density" else 1 - share)
