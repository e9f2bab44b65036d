"""Depth score: share of each layer's knowledge that is gone, relative to a model that never had it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["depth_score"]


def depth_score(control_gaps: Tensor, unlearned_gaps: Tensor, threshold: float = 0.05) -> Tensor:
    r"""Unlearning depth score, the share of the control's gaps that the unlearned model reaches.

    $$\mathrm{UDS} = \frac{\sum_{l \in K} d^C_l\, \mathrm{clip}(d^U_l / d^C_l, 0, 1)}{\sum_{l \in K} d^C_l},
    \qquad K = \{l : d^C_l > \tau\}$$

    A gap $d_l$ is the loss in mean log-probability of a span when the original model continues from another model's
    states at layer $l$. A score of 1 is as deep as retraining, and 0 is untouched. Gaps of a logit lens can be used
    instead.

    Args:
        control_gaps: Gaps of the control model $d^C$, shape ``(L, ...)``, in nats.
        unlearned_gaps: Gaps of the unlearned model $d^U$, of the same shape.
        threshold: The threshold $\tau$ above which a layer of the control counts as lacking the knowledge.

    Returns:
        Shape ``(...)``, in [0, 1]; NaN where no layer counts.

    Raises:
        ValueError: If the shapes differ, or the threshold is negative.

    Example:
        >>> depth_score(torch.tensor([0.02, 0.4, 1.0, 2.0]), torch.tensor([0.5, 0.1, 0.8, 2.6]))
        tensor(0.8529)

    References:
        The released code of the unlearning depth score, https://github.com/gnueaj/unlearning-depth-score.
    """
    if control_gaps.shape != unlearned_gaps.shape:
        raise ValueError(
            "Both models need a gap for each layer and row, but got the shapes "
            f"{tuple(control_gaps.shape)} and {tuple(unlearned_gaps.shape)}."
        )
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, but got {threshold}.")
    counts = control_gaps > threshold
    reached = control_gaps * (unlearned_gaps / control_gaps).clamp(0, 1)
    return torch.where(counts, reached, 0.0).sum(0) / torch.where(counts, control_gaps, 0.0).sum(0)
