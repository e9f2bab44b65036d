"""Truth ratio: probability of wrong answers relative to that of a paraphrase of the right one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["truth_ratio", "truth_ratio_score"]

Variant = Literal["geometric", "arithmetic"]
Aggregate = Literal["forget", "retain", "prob_mean"]


def truth_ratio(correct: Tensor, wrong: Tensor, variant: Variant = "geometric", epsilon: float = 1e-10) -> Tensor:
    r"""Truth ratio of each row, :math:`R = \bar P(W) / (p(\tilde a) + \epsilon)`.

    :math:`p` is the geometric mean per token of an answer's probability. The mean over the wrong answers :math:`W` is
    :math:`\bar P = \exp \operatorname{mean}_j \log p(w_j)` (``"geometric"``), as the authors' evaluation and
    open-unlearning compute it, or :math:`\bar P = \operatorname{mean}_j p(w_j)` (``"arithmetic"``), as in the paper's
    text. The geometric one is never larger.

    Args:
        correct: Mean log-probability per token of the paraphrased right answer, shape ``(N,)``; of the answer itself
            where there is no paraphrase.
        wrong: The same of the wrong answers, shape ``(N, W)``; NaN where a row has fewer.
        variant: ``"geometric"`` or ``"arithmetic"``.
        epsilon: Added to the denominator; 0 works on logarithms, which do not underflow.

    Returns:
        Shape ``(N,)``, fp64; NaN where there is no right or no wrong answer.

    Raises:
        ValueError: If a shape is wrong or the variant unknown.

    Example:
        >>> right = torch.tensor([0.2]).log()
        >>> wrong = torch.tensor([[0.4, 0.1, 0.1, 0.05, 0.05]]).log()
        >>> truth_ratio(right, wrong), truth_ratio(right, wrong, "arithmetic")
        (tensor([0.5000], dtype=torch.float64), tensor([0.7000], dtype=torch.float64))

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
        Dorna et al., *OpenUnlearning*, arXiv:2506.12618.
    """
    correct, mean = _logs(correct, wrong, variant)
    return (mean - correct).exp() if epsilon == 0 else mean.exp() / (correct.exp() + epsilon)


def truth_ratio_score(
    correct: Tensor,
    wrong: Tensor,
    aggregate: Aggregate = "forget",
    variant: Variant = "geometric",
    epsilon: float = 1e-10,
) -> Tensor:
    r"""Score of a row in a truth-ratio column, which is the mean over rows.

    ``"forget"`` is :math:`\min(R, 1/R)`, near 1 where wrong answers are as likely as the right one; ``"retain"`` is
    :math:`\max(0, 1 - R)`, near 1 where the right one is likelier; ``"prob_mean"`` is
    :math:`p / (p + \bar P)`, the extent of knowledge.

    Args:
        correct: As in `truth_ratio`.
        wrong: As there.
        aggregate: ``"forget"``, ``"retain"`` (also for real authors and world facts) or ``"prob_mean"``.
        variant: As there.
        epsilon: As there; also added to the other denominators.

    Returns:
        Shape ``(N,)``, fp64, in [0, 1].

    Raises:
        ValueError: If a shape is wrong or an option unknown.

    Example:
        >>> right, wrong = torch.tensor([0.2]).log(), torch.tensor([[0.1, 0.1]]).log()
        >>> truth_ratio_score(right, wrong, "prob_mean")
        tensor([0.6667], dtype=torch.float64)
    """
    if aggregate == "prob_mean":
        correct, mean = _logs(correct, wrong, variant)
        if epsilon == 0:
            return torch.sigmoid(correct - mean)
        return correct.exp() / (correct.exp() + mean.exp() + epsilon)
    ratio = truth_ratio(correct, wrong, variant, epsilon)
    if aggregate == "forget":
        return torch.minimum(ratio, 1 / (ratio + epsilon))
    if aggregate == "retain":
        return (1 - ratio).clamp_min(0)
    raise ValueError(f"aggregate must be 'forget', 'retain' or 'prob_mean', but got {aggregate!r}.")


def _logs(correct: Tensor, wrong: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """Logarithms of the probability of the right answer and of the mean of the wrong ones."""
    if correct.dim() != 1 or wrong.dim() != 2 or len(wrong) != len(correct):
        raise ValueError(
            "Mean log-probabilities of right answers (N,) and of wrong ones (N, W) are needed, but got "
            f"{tuple(correct.shape)} and {tuple(wrong.shape)}."
        )
    wrong = wrong.double()
    if variant == "geometric":
        return correct.double(), wrong.nanmean(1)
    if variant == "arithmetic":
        count = (~wrong.isnan()).sum(1)
        total = wrong.masked_fill(wrong.isnan(), -torch.inf).logsumexp(1)
        return correct.double(), torch.where(count > 0, total - count.double().log(), torch.nan)
    raise ValueError(f"variant must be 'geometric' or 'arithmetic', but got {variant!r}.")
