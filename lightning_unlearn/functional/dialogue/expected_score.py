"""Rating scores from the log-probabilities of the scale's labels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["argmax_score", "expected_score", "label_log_probs", "label_weights", "ratio_score"]


def label_weights(log_probs: Tensor, top_k: int | None = None) -> Tensor:
    r"""Probability of each label relative to all labels, :math:`p_i = e^{\ell_i} / \sum_j e^{\ell_j}`.

    Log-probabilities :math:`\ell_i` are negative: dividing them by their sum would give the least likely label the
    largest weight. Logits work as well, because a constant added to all of them changes nothing.

    Args:
        log_probs: Log-probabilities or logits of the labels, shape ``(..., L)``.
        top_k: Keep only this many of the most likely labels; among equal ones, the lowest.

    Returns:
        Shape ``(..., L)``, fp32; sums to 1.

    Raises:
        ValueError: If ``top_k`` is not in ``[1, L]``.

    Example:
        >>> label_weights(torch.tensor([-5.0, -2.0, -1.0, -1.5, -4.0])).round(decimals=4)
        tensor([0.0090, 0.1801, 0.4896, 0.2970, 0.0244])
    """
    log_probs = log_probs.float()
    if top_k is not None:
        if not 1 <= top_k <= log_probs.shape[-1]:
            raise ValueError(f"top_k must be in [1, {log_probs.shape[-1]}], the number of labels, but got {top_k}.")
        order = log_probs.sort(dim=-1, descending=True, stable=True).indices
        kept = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, order[..., :top_k], True)
        log_probs = log_probs.masked_fill(~kept, -torch.inf)
    return log_probs.softmax(-1)


def expected_score(log_probs: Tensor, values: Tensor, top_k: int | None = None) -> Tensor:
    r"""Expected value of a scale, :math:`\sum_i p_i v_i` with the weights of `label_weights`.

    Args:
        log_probs: Log-probabilities or logits of the labels, shape ``(..., L)``.
        values: The number that each label stands for, shape ``(L,)``.
        top_k: Keep only this many of the most likely labels.

    Returns:
        Shape ``(...,)``, fp32, in ``[min v, max v]``.

    References:
        Jia et al., "Leveraging LLMs for Dialogue Quality Measurement", 2024, arXiv:2406.17304.

    Example:
        >>> log_probs, values = torch.tensor([-5.0, -2.0, -1.0, -1.5, -4.0]), torch.arange(1.0, 6.0)
        >>> round(expected_score(log_probs, values).item(), 4), round(expected_score(log_probs, values, 3).item(), 4)
        (3.1477, 3.1209)
    """
    values = values.float()
    score = (label_weights(log_probs, top_k) * values).sum(-1)
    return score.clamp(values.min(), values.max())  # rounding could exceed the scale


def argmax_score(log_probs: Tensor, values: Tensor) -> Tensor:
    """Value of the most likely label; among equal ones, the lowest.

    Args:
        log_probs: Log-probabilities or logits of the labels, shape ``(..., L)``.
        values: The number that each label stands for, shape ``(L,)``.

    Returns:
        Shape ``(...,)``, fp32.
    """
    return expected_score(log_probs, values, top_k=1)


def ratio_score(log_probs: Tensor) -> Tensor:
    r"""Share of the upper of two labels, :math:`p_+ / (p_+ + p_-)`.

    Args:
        log_probs: Log-probabilities or logits of the lower and the upper label, shape ``(..., 2)``.

    Returns:
        Shape ``(...,)``, fp32, in ``[0, 1]``.

    Raises:
        ValueError: If there are not two labels.

    Example:
        >>> ratio_score(torch.tensor([0.3, 0.1]).log()).item()
        0.25
    """
    if log_probs.shape[-1] != 2:
        raise ValueError(
            f"The ratio is of two labels, but there are {log_probs.shape[-1]}. Use 'expected' for a longer scale."
        )
    return label_weights(log_probs)[..., 1]


def label_log_probs(tails: list[tuple[int, ...]], step: dict[tuple[int, ...], dict[int, Tensor]]) -> Tensor:
    r"""Log-probability of multi-token labels by the chain rule, :math:`\sum_t \log p(x_t \mid x_{<t})`.

    If one label is a prefix of another, such as ``1`` and ``10``, its probability excludes the continuation to the
    longer label: :math:`p(\text{1}) (1 - p(\text{0} \mid \text{1}))`.

    Args:
        tails: Tokens of each label.
        step: For each prefix of a label, the log-probabilities of the tokens that continue it, each of shape
            ``(N,)``.

    Returns:
        Shape ``(N, L)``.

    Example:
        >>> log = lambda *p: torch.tensor(p).log()
        >>> step = {(): {1: log(0.5), 2: log(0.5)}, (1,): {0: log(0.25)}}
        >>> label_log_probs([(1,), (1, 0), (2,)], step).exp()
        tensor([[0.3750, 0.1250, 0.5000]])
    """
    labels = []
    for tail in tails:
        log_prob = torch.stack([step[tail[:place]][token] for place, token in enumerate(tail)]).sum(0)
        if tail in step:
            longer = torch.stack(list(step[tail].values())).logsumexp(0)
            log_prob = log_prob + torch.log1p(-longer.exp().clamp(max=1.0))
        labels.append(log_prob)
    return torch.stack(labels, -1)
