"""Forget quality: Kolmogorov-Smirnov test between the truth ratios of the unlearned and a retrained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lightning_unlearn.core.checks import finite, one_of
from lightning_unlearn.core.row_metric import IndexedMetric

__all__ = ["ForgetQuality", "ForgetQualityResult", "forget_quality"]

Role = Literal["unlearned", "retrained"]


class ForgetQualityResult(NamedTuple):
    """Outcome of the two-sample test.

    Args:
        statistic: Largest distance $D$ of the two distribution functions, in [0, 1].
        p_value: Chance of a $D$ as large between two samples of one distribution. A high one says that the test found
            no difference, which also happens to broken models and on few rows.
        log10_p: Its logarithm, not below ``log10_floor``.
        log10_floor: The logarithm at $D = 1$, total separation: the most that this number of rows can show.
        n: Rows of the unlearned model.
        n_retrained: Rows of the retrained one.
    """

    statistic: float
    p_value: float
    log10_p: float
    log10_floor: float
    n: int
    n_retrained: int


def forget_quality(unlearned: Tensor, retrained: Tensor | None) -> ForgetQualityResult | None:
    r"""Forget quality, the p-value of the two-sided Kolmogorov-Smirnov test of two samples of truth ratios.

    The test depends only on the order of the ratios, so $R$ and $1/R$ give the same result. At $D = 1$ the p-value is
    $2 / \binom{n+m}{n}$. Compare p-values of equal numbers of rows only. Retraining twice gives about 0.87 to 1.

    Args:
        unlearned: Truth ratios of the unlearned model on the forget rows, shape ``(n,)``.
        retrained: Those of the retrained model, shape ``(m,)``. Without them there is no forget quality: ``None``.

    Returns:
        The statistic, the p-value and the numbers of rows; ``None`` without a retrained model.

    Raises:
        ValueError: If a set is empty or a ratio is NaN.
        ImportError: If scipy is missing.

    Example:
        >>> import torch
        >>> result = forget_quality(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([3.0, 4.0, 5.0, 6.0]))
        >>> result.statistic, round(result.p_value, 10)
        (0.5, 0.7714285714)

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """
    # Ratios of a model that has collapsed may be infinite, which has its place in the order as well.
    finite("truth ratios of the unlearned model", unlearned.clamp(max=1.0))
    if retrained is None:
        return None
    finite("truth ratios of the retrained model", retrained.clamp(max=1.0))
    try:
        from scipy.stats import ks_2samp
    except ImportError:
        raise ImportError('Forget quality needs scipy: pip install "lightning-unlearn[metrics]"') from None
    n, m = len(unlearned), len(retrained)
    test = ks_2samp(unlearned.detach().cpu().double().numpy(), retrained.detach().cpu().double().numpy())
    p = float(test.pvalue)
    floor = (math.log(2) + math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1)) / math.log(10)
    log10_p = max(math.log10(p), floor) if p > 0 else floor
    return ForgetQualityResult(float(test.statistic), p, log10_p, floor, n, m)


class ForgetQuality(IndexedMetric):
    """Forget quality over all rows of both models; see `forget_quality`.

    ``compute`` gives ``None`` where the retrained model has no rows. In [0, 1]; near 1 is good, if the model still
    works.

    Raises:
        ValueError: If the unlearned model has no rows.
        ImportError: If scipy is missing; raised by ``compute``.

    Example:
        >>> import torch
        >>> metric = ForgetQuality()
        >>> metric.update(torch.tensor([1.0, 2.0]), "unlearned", index=[0, 1])
        >>> metric.update(torch.tensor([1.0, 2.0]), "retrained", index=[0, 1])
        >>> metric.compute().p_value
        1.0

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """

    higher_is_better: bool | None = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(sets=("unlearned", "retrained"), **kwargs)

    def update(self, ratios: Tensor, role: Role, index: Tensor | Sequence[int] | None = None) -> None:
        """Count truth ratios ``(B,)`` of forget rows, NaN where there is none.

        Args:
            ratios: As [`truth_ratio`][lightning_unlearn.functional.language.truth_ratio.truth_ratio] gives them.
            role: ``"unlearned"`` or ``"retrained"``.
            index: Numbers of the rows in their set.
        """
        self.record(index, one_of("role", role, Role), value=ratios)

    def compute(self) -> ForgetQualityResult | None:
        """The test over all rows so far."""
        seen = len(self.values("retrained_index"))
        return forget_quality(self.kept(group="unlearned"), self.kept(group="retrained") if seen else None)
