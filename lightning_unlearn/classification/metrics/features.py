"""Features for membership inference: one number per row, or all its probabilities, from fp32 logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_unlearn.classification.metrics.checks import check_outputs

__all__ = ["FEATURES", "confidence", "correctness", "entropy", "log_odds", "modified_entropy", "probabilities"]


def correctness(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Whether a row is classified correctly, $[\arg\max_k z_k = y]$.

    Args:
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``.

    Returns:
        Shape ``(N,)``, 0 or 1.

    Example:
        >>> correctness(torch.eye(2), torch.tensor([0, 0]))
        tensor([1., 0.])
    """
    check_outputs(logits, labels)
    return (logits.argmax(-1) == labels).float()


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Probability of the label, $p_y$.

    Args:
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``.

    Returns:
        Shape ``(N,)``, in [0, 1].

    Example:
        >>> confidence(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor([0.6652])
    """
    check_outputs(logits, labels)
    return logits.float().softmax(-1).gather(1, labels[:, None])[:, 0]


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Entropy of the prediction, $-\sum_k p_k \log p_k$, in nats.

    Args:
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``; checked, but the entropy doesn't depend on them.

    Returns:
        Shape ``(N,)``, in [0, ln K].

    Example:
        >>> entropy(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([0]))
        tensor([0.8018])
    """
    check_outputs(logits, labels)
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def modified_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Modified prediction entropy, which also takes the label into account.

    $$M(p, y) = -(1 - p_y)\log p_y - \sum_{k \ne y} p_k \log(1 - p_k)$$

    It is 0 for a confident correct prediction and grows without bound for a confident wrong one, whereas the entropy is
    0 for both. It is computed in log space, so it is finite for all finite logits. Widely copied code computes another
    quantity, which depends on the other rows of the batch; this is the formula of the paper.

    Args:
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``.

    Returns:
        Shape ``(N,)``, at least 0.

    Example:
        >>> modified_entropy(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([0]))
        tensor([0.1622])

    References:
        Song and Mittal, *Systematic Evaluation of Privacy Risks of Machine Learning Models*, arXiv:2003.10595.
    """
    check_outputs(logits, labels)
    log_p = logits.float().log_softmax(-1)
    log_rest = torch.log1p(-log_p.exp())
    # 1 - p suffers from cancellation only for the largest p: there, add up the other probabilities instead.
    top = log_p.argmax(-1, keepdim=True)
    log_rest = log_rest.scatter(1, top, _log_others(log_p, top))
    y = labels[:, None]
    of_label = log_rest.gather(1, y).exp() * log_p.gather(1, y)
    return -(log_p.exp() * log_rest).scatter(1, y, of_label).sum(-1)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Logit-scaled confidence, $\phi = \log p_y - \log \sum_{k \ne y} p_k$, approximately normal over training runs.

    Args:
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``.

    Returns:
        Shape ``(N,)``, any real number.

    Example:
        >>> log_odds(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([0])).abs() < 1e-6
        tensor([True])

    References:
        Carlini et al., *Membership Inference Attacks From First Principles*, arXiv:2112.03570.
    """
    check_outputs(logits, labels)
    z, y = logits.float(), labels[:, None]
    return (z.gather(1, y) - _log_others(z, y))[:, 0]


def probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Probabilities of all classes, $p_1, \dots, p_K$: as wide as the model's output, whichever classes a set has.

    Args:
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``; checked, but the probabilities don't depend on them.

    Returns:
        Shape ``(N, K)``; rows sum to 1.

    Example:
        >>> probabilities(torch.zeros(1, 4), torch.tensor([0]))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    check_outputs(logits, labels)
    return logits.float().softmax(-1)


FEATURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "confidence": confidence,
    "correctness": correctness,
    "entropy": entropy,
    "modified_entropy": modified_entropy,
    "prob": probabilities,
}
"""The features of [`MIAEfficacy`][lightning_unlearn.classification.metrics.mia.MIAEfficacy] by name."""


def _log_others(z: Tensor, column: Tensor) -> Tensor:
    return z.scatter(1, column, -torch.inf).logsumexp(-1, keepdim=True)
