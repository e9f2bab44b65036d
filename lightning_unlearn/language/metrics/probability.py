"""Probability of answers: geometric mean per token, plain and normalised over options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.row_metric import IndexedMetric

__all__ = [
    "NormalisedProbability",
    "Probability",
    "mean_log_prob",
    "mean_log_probs",
    "normalised_probability",
    "probability",
]

LogProbs: TypeAlias = Sequence[Tensor]
"""Log-probabilities of the tokens of each answer, shape ``(n,)`` each, such as ``TokenStats.log_prob``."""


def mean_log_prob(log_probs: LogProbs) -> Tensor:
    r"""Mean log-probability per token of each answer, $\frac1n\sum_t \ell_t$, in fp64.

    Args:
        log_probs: Of each answer the log-probabilities of its tokens, the token that ends it among them, shape
            ``(n,)``.

    Returns:
        Shape ``(N,)``; NaN for an answer without tokens.

    Example:
        >>> mean_log_prob([torch.tensor([0.5, 0.25]).log()])
        tensor([-1.0397], dtype=torch.float64)
    """
    means = [values.detach().double().mean().cpu() for values in log_probs]  # of nothing NaN
    return torch.stack(means) if means else torch.empty(0, dtype=torch.float64)


def mean_log_probs(log_probs: Sequence[LogProbs]) -> Tensor:
    """Mean log-probabilities per token of several answers a row.

    Args:
        log_probs: Of each row, of each of its answers, the log-probabilities of the tokens.

    Returns:
        Shape ``(N, W)``, fp64, for at most ``W`` answers a row; NaN where a row has fewer.
    """
    rows = [mean_log_prob(row) for row in log_probs]
    width = max(map(len, rows), default=0)
    table = torch.full((len(rows), width), torch.nan, dtype=torch.float64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def probability(log_probs: LogProbs) -> Tensor:
    r"""Probability of each answer, $p(a \mid q) = \exp\big(\frac1n\sum_t \ell_t\big)$: the geometric mean per token.

    The value of a set is the mean over its rows.

    Args:
        log_probs: Of each answer the log-probabilities of its tokens, the token that ends it among them, shape
            ``(n,)``.

    Returns:
        Shape ``(N,)``, fp64, in [0, 1]; NaN for an answer without tokens.

    Example:
        >>> probability([torch.tensor([0.5, 0.25]).log()])
        tensor([0.3536], dtype=torch.float64)

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """
    return mean_log_prob(log_probs).exp()


def normalised_probability(correct: Tensor, wrong: Tensor, epsilon: float = 1e-10) -> Tensor:
    r"""Probability of the right answer among options, $p / (p + \sum_j p_j + \epsilon)$, for real authors and facts.

    Args:
        correct: `probability` of the right answer, shape ``(N,)``.
        wrong: Of the wrong ones, shape ``(N, W)``; NaN where a row has fewer.
        epsilon: Added to the denominator, as open-unlearning does; the authors of TOFU add 0.

    Returns:
        Shape ``(N,)``, fp64, in [0, 1].

    Raises:
        ValueError: If a shape is wrong.

    Example:
        >>> normalised_probability(torch.tensor([0.5]), torch.tensor([[0.25, 0.125, 0.125]]))
        tensor([0.5000], dtype=torch.float64)
    """
    if correct.dim() != 1 or wrong.dim() != 2 or len(wrong) != len(correct):
        raise ValueError(
            "Probabilities of right answers (N,) and of wrong ones (N, W) are needed, but got "
            f"{tuple(correct.shape)} and {tuple(wrong.shape)}."
        )
    correct = correct.double()
    return correct / (correct + wrong.double().nansum(1) + epsilon)


class Probability(IndexedMetric):
    r"""Mean over rows of an answer's probability, $\frac1N\sum_i \exp\big(\frac{1}{n_i}\sum_t \ell_{it}\big)$.

    In [0, 1]. Good is the retrained model's value on forget rows, and the original's on others. Answers without tokens
    are left out, with a warning.

    Raises:
        ValueError: If no row was seen, or several processes give no index.

    Example:
        >>> metric = Probability()
        >>> metric.update([torch.tensor([0.5, 0.25]).log(), torch.tensor([0.5]).log()], index=[0, 1])
        >>> metric.compute()
        tensor(0.4268, dtype=torch.float64)

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """

    higher_is_better: bool | None = None

    def update(self, log_probs: LogProbs | Sequence[LogProbs], index: Tensor | Sequence[int] | None = None) -> None:
        """Count rows.

        Args:
            log_probs: Of each row the log-probabilities of the answer's tokens; or of several answers, over which the
                mean is taken first.
            index: Numbers of the rows in their set, shape ``(B,)``.
        """
        if all(isinstance(row, Tensor) for row in log_probs):
            values = probability(log_probs)  # type: ignore[arg-type]
        else:
            values = mean_log_probs(log_probs).exp().nanmean(1)  # type: ignore[arg-type]
        self.record(index, value=values)

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.kept().mean()


class NormalisedProbability(IndexedMetric):
    r"""Mean over rows of the right answer's probability among options, $p / (p + \sum_j p_j + \epsilon)$.

    In [0, 1]; higher is more useful. TOFU's column "probability" of real authors and world facts.

    Args:
        epsilon: Added to the denominator; 0 is what the authors of TOFU do.

    Raises:
        ValueError: If an argument is out of range, or no row was seen.

    Example:
        >>> metric = NormalisedProbability()
        >>> metric.update([torch.tensor([0.5]).log()], [[torch.tensor([0.5]).log()]], index=[0])
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """

    higher_is_better: bool | None = True

    def __init__(self, epsilon: float = 1e-10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = at_least("epsilon", epsilon, 0)

    def update(self, correct: LogProbs, wrong: Sequence[LogProbs], index: Tensor | Sequence[int] | None = None) -> None:
        """Count rows.

        Args:
            correct: Of each row the log-probabilities of the right answer's tokens.
            wrong: Of each row, of each wrong answer, the same.
            index: Numbers of the rows in their set.
        """
        others = mean_log_probs(wrong).exp()
        self.record(index, value=normalised_probability(probability(correct), others, self.epsilon))

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.kept().mean()
