"""Truth ratio as a metric over the rows of a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.functional.language.truth_ratio import Aggregate, Variant, truth_ratio, truth_ratio_score
from lightning_unlearn.language.metrics.probability import LogProbs, mean_log_prob, mean_log_probs

__all__ = [
    "TruthRatio",
]


class TruthRatio(IndexedMetric):
    r"""Mean over rows of $\min(R, 1/R)$ on forget rows, or of $\max(0, 1 - R)$ on others.

    $$R = \bar P(W) / p(\tilde a)$$

    In [0, 1]. On forget rows good is the retrained model's value; on others higher is more useful. See
    [`truth_ratio`][lightning_unlearn.functional.language.truth_ratio.truth_ratio] for the variants.

    Args:
        aggregate: ``"forget"``, ``"retain"`` (also for real authors and world facts) or ``"prob_mean"``,
            $p / (p + \bar P)$.
        variant: ``"geometric"`` as the authors' evaluation and open-unlearning compute it, ``"arithmetic"`` as in the
            paper's text.
        epsilon: Added to denominators, as open-unlearning does; 0 is what the authors of TOFU do.

    Raises:
        ValueError: If an option is unknown, or no row was seen.

    Example:
        >>> import torch
        >>> metric = TruthRatio()
        >>> metric.update([torch.tensor([0.4]).log()], [[torch.tensor([0.2]).log()]], index=[0])
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
        Dorna et al., *OpenUnlearning*, arXiv:2506.12618.
    """

    higher_is_better: bool | None = None

    def __init__(
        self,
        aggregate: Aggregate = "forget",
        variant: Variant = "geometric",
        epsilon: float = 1e-10,
        **kwargs: Any,
    ) -> None:
        super().__init__(("value", "ratio"), **kwargs)
        self.aggregate, self.variant = one_of("aggregate", aggregate, Aggregate), one_of("variant", variant, Variant)
        self.epsilon = at_least("epsilon", epsilon, 0)

    def update(self, correct: LogProbs, wrong: Sequence[LogProbs], index: Tensor | Sequence[int] | None = None) -> None:
        """Count rows.

        Args:
            correct: Of each row the log-probabilities of the paraphrased right answer's tokens; of the answer itself
                where there is no paraphrase.
            wrong: Of each row, of each wrong answer, the same.
            index: Numbers of the rows in their set.
        """
        right, others = mean_log_prob(correct), mean_log_probs(wrong)
        self.record(
            index,
            value=truth_ratio_score(right, others, self.aggregate, self.variant, self.epsilon),
            ratio=truth_ratio(right, others, self.variant, self.epsilon),
        )

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.kept().mean()
