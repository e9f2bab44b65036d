"""Extraction strength, exact memorisation and probability of an answer under teacher forcing."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["answer_probability", "exact_memorization", "extraction_strength"]

StrengthVariant = Literal["strict", "floored"]


def answer_probability(log_prob: Tensor) -> Tensor:
    r"""Probability of an answer per token, the geometric mean :math:`\exp(\frac{1}{n} \sum_t \ell_t)`.

    Args:
        log_prob: Log-probabilities :math:`\ell` of the tokens of an answer, its end token among them, shape ``(n,)``.

    Returns:
        A scalar in [0, 1], fp64.

    Raises:
        ValueError: If there is no token.

    Example:
        >>> answer_probability(torch.tensor([0.5, 0.25]).log())
        tensor(0.3536, dtype=torch.float64)

    References:
        Maini et al., TOFU, arXiv:2401.06121, section 2.2.
    """
    _check(log_prob, "log_prob")
    return log_prob.double().mean().exp()


def extraction_strength(hit: Tensor, variant: StrengthVariant = "strict", drop_last: bool = False) -> Tensor:
    r"""Share of an answer that a model completes greedily from the rest of it.

    :math:`1 - k / n`, where :math:`k` is the first token from which on all tokens are the most likely ones.

    Args:
        hit: Whether each token is the most likely one, given those before it, shape ``(n,)``, boolean.
        variant: ``"strict"``: 0 where the last token is wrong. ``"floored"``, as in open-unlearning: :math:`k` stops at
            the last token, so that is :math:`1 / n`.
        drop_last: Leave out the last token, the end of the answer.

    Returns:
        A scalar in [0, 1], fp64.

    Raises:
        ValueError: If no token is left.

    Example:
        >>> hit = torch.tensor([True, False, True, True, True])
        >>> extraction_strength(hit)
        tensor(0.6000, dtype=torch.float64)

    References:
        Carlini et al., Extracting training data from large language models, arXiv:2012.07805. The definition is that of
        Wang et al., Towards effective evaluations and comparisons for LLM unlearning methods, arXiv:2406.09179.
    """
    hit = _kept(hit, drop_last)
    n = len(hit)
    tail = int(hit.flip(0).long().cumprod(0).sum())
    if variant == "floored":
        tail = max(tail, 1)
    elif variant != "strict":
        raise ValueError(f"variant must be 'strict' or 'floored', but got {variant!r}.")
    return torch.tensor(tail / n, dtype=torch.float64)


def exact_memorization(hit: Tensor, drop_last: bool = False) -> Tensor:
    r"""Share of the tokens of an answer that are the most likely ones, :math:`\frac{1}{n} \sum_t \text{hit}_t`.

    Args:
        hit: Whether each token is the most likely one, given those before it, shape ``(n,)``, boolean.
        drop_last: Leave out the last token, the end of the answer.

    Returns:
        A scalar in [0, 1], fp64.

    Raises:
        ValueError: If no token is left.

    Example:
        >>> exact_memorization(torch.tensor([True, False, True, True, True]))
        tensor(0.8000, dtype=torch.float64)

    References:
        Tirumala et al., Memorization without overfitting, arXiv:2205.10770.
    """
    return _kept(hit, drop_last).double().mean()


def _kept(hit: Tensor, drop_last: bool) -> Tensor:
    hit = hit[:-1] if drop_last else hit
    _check(hit, "hit")
    return hit


def _check(values: Tensor, name: str) -> None:
    if values.dim() != 1 or not len(values):
        raise ValueError(
            f"{name} must have the values of the tokens of one answer, at least one, but has shape "
            f"{tuple(values.shape)}. Leave answers without a token out."
        )
