"""U-LiRA: per-row likelihood-ratio attack with reference models that never saw the row."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.classification.metrics.features import log_odds
from lightning_unlearn.core.checks import above, at_least, finite, inside
from lightning_unlearn.core.row_metric import RowMetric
from lightning_unlearn.functional.roc import tpr_at_fpr

__all__ = ["ULiRA", "ULiRAResult", "u_lira"]


class ULiRAResult(NamedTuple):
    """The outcome of U-LiRA.

    Args:
        accuracy: Mean over rows of the attack's balanced accuracy, in percent; 50, chance, is best.
        std: Standard deviation of that accuracy over rows, in percentage points.
        tpr_at_fpr: Percentage of unlearned observations that are detected at the given false-positive rate; about that
            rate is best.
    """

    accuracy: float
    std: float
    tpr_at_fpr: float


def u_lira(phi: Tensor, unlearned: Tensor, min_std: float = 1e-3) -> Tensor:
    r"""Probability that a model learned and then unlearned a row, rather than never having seen it.

    For each row, normal distributions are fitted to the logit-scaled confidence $\phi$ under models that trained on the
    row and unlearned it, and under models that never saw it:

    $$s = \frac{\mathcal N(\phi;\mu_u,\sigma_u^2)}{\mathcal N(\phi;\mu_u,\sigma_u^2)
      + \mathcal N(\phi;\mu_{out},\sigma_{out}^2)}$$

    Each model is scored with distributions that are fitted without it and without one model of the other kind: with two
    fits of unequal size, the score would differ from chance even if the two kinds did not differ.

    Args:
        phi: $\phi$ of each row under each model, shape ``(N, T)``; see
            [`log_odds`][lightning_unlearn.classification.metrics.features.log_odds].
        unlearned: Whether the model unlearned the row (true) or never saw it (false), boolean, shape ``(N, T)``; at
            least three of each kind in every row, ideally equal numbers.
        min_std: Smallest $\sigma$, for models that agree to the last digit.

    Returns:
        Shape ``(N, T)``, fp64, in [0, 1]; at 0.5, which is best, the model can't be told from a retrained one.

    Raises:
        ValueError: If a shape or type is wrong, a value is not finite, or a row has too few models of either kind.

    Example:
        >>> phi = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
        >>> unlearned = torch.tensor([[True, True, True, False, False, False]])
        >>> u_lira(phi, unlearned)[0, 1]
        tensor(0.9047, dtype=torch.float64)

    References:
        Hayes et al., *Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy*,
        arXiv:2403.01218.
    """
    if phi.dim() != 2 or phi.shape != unlearned.shape or unlearned.dtype != torch.bool:
        raise ValueError(
            f"phi (N, T) and a boolean unlearned (N, T) are needed, but got {tuple(phi.shape)} and "
            f"{tuple(unlearned.shape)} {unlearned.dtype}."
        )
    finite("phi", phi)
    above("min_std", min_std, 0)
    fewest = int(torch.minimum(unlearned.sum(1), (~unlearned).sum(1)).min())
    if fewest < 3:
        raise ValueError(
            f"A row has only {fewest} models of one kind, but a spread without the model under test needs 3. "
            "Train more pairs of shadow models."
        )
    # Centering keeps the sums of squares below from cancelling.
    phi = phi.double() - phi.double().mean(1, keepdim=True)
    other = phi.gather(1, _partner(unlearned))
    log_unlearned = _log_density(phi, unlearned, torch.where(unlearned, phi, other), min_std)
    log_unseen = _log_density(phi, ~unlearned, torch.where(unlearned, other, phi), min_std)
    return torch.sigmoid(log_unlearned - log_unseen)


class ULiRA(RowMetric):
    r"""U-LiRA over all forget rows: accuracy of an attacker who tells unlearned models from models without the row.

    Train ``num_models`` models, each on a random half of the rows under test, let each unlearn the rows of that half,
    and run each once over all rows; see [`u_lira`][lightning_unlearn.classification.metrics.ulira.u_lira]. A score
    above ½ counts as unlearned, a score of exactly ½ as half a hit. Accuracy is in [0, 100]; 50, chance, is best, and
    is what the attacker reaches on retrained models.

    Args:
        num_models: Models $T$, at least 6.
        fpr: False-positive rate at which the true-positive rate is reported, in (0, 1).
        min_std: Smallest standard deviation of the normal distributions.

    Raises:
        ValueError: If an option is out of range, a shape is wrong or a logit is not finite.

    References:
        Hayes et al., *Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy*,
        arXiv:2403.01218.
    """

    higher_is_better: bool | None = False

    def __init__(self, num_models: int, fpr: float = 0.01, min_std: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_models = at_least("num_models", num_models, 6, "a row needs three of each kind")
        self.fpr, self.min_std = inside("fpr", fpr, 0, 1), above("min_std", min_std, 0)
        self.add_rows("phi")
        self.add_rows("unlearned")

    def update(self, logits: Tensor, labels: Tensor, unlearned: Tensor) -> None:
        """Count rows under all models.

        Args:
            logits: Of each model, shape ``(T, N, K)``.
            labels: Shape ``(N,)``.
            unlearned: Whether the model unlearned the row or never saw it, boolean, shape ``(T, N)``.
        """
        if logits.dim() != 3 or len(logits) != self.num_models or unlearned.shape != logits.shape[:2]:
            raise ValueError(
                f"logits ({self.num_models}, N, K) and unlearned ({self.num_models}, N) are needed, but got "
                f"{tuple(logits.shape)} and {tuple(unlearned.shape)}."
            )
        if unlearned.dtype != torch.bool:
            raise ValueError(f"unlearned must be boolean, but got {unlearned.dtype}.")
        phi = log_odds(logits.flatten(0, 1), labels.repeat(self.num_models))
        self.append("phi", phi.view(self.num_models, -1).T)
        self.append("unlearned", unlearned.T)

    def compute(self) -> ULiRAResult:
        """Accuracy, its spread over rows, and the true-positive rate at a low false-positive rate."""
        phi, unlearned = (self.values(name).view(-1, self.num_models) for name in ("phi", "unlearned"))
        unlearned = unlearned.bool()
        scores = u_lira(phi, unlearned, self.min_std)
        says = (scores > 0.5).double() + (scores == 0.5).double() / 2
        tpr = _mean_where(says, unlearned)
        tnr = _mean_where(1 - says, ~unlearned)
        accuracy = 50 * (tpr + tnr)
        return ULiRAResult(
            float(accuracy.mean()),
            float(accuracy.std(correction=0)),
            100 * float(tpr_at_fpr(scores[unlearned], scores[~unlearned], self.fpr)),
        )


def _partner(unlearned: Tensor) -> Tensor:
    """For each model of a row, the column of its partner of the other kind (i-th with i-th), shape ``(N, T)``."""
    ones, zeros = unlearned.sum(1, keepdim=True), (~unlearned).sum(1, keepdim=True)
    unlearned_first = torch.argsort(unlearned.int(), dim=1, descending=True, stable=True)
    among_ones, among_zeros = unlearned.cumsum(1) - 1, (~unlearned).cumsum(1) - 1
    place = torch.where(unlearned, ones + among_ones % zeros, among_zeros % ones)
    return unlearned_first.gather(1, place)


def _log_density(phi: Tensor, chosen: Tensor, left_out: Tensor, min_std: float) -> Tensor:
    """Log density of each value, without ln √2π, under the normal fitted to the chosen values with one left out."""
    weight = chosen.double()
    count = weight.sum(1, keepdim=True) - 1
    mean = ((phi * weight).sum(1, keepdim=True) - left_out) / count
    squares = (phi.square() * weight).sum(1, keepdim=True) - left_out.square()
    std = ((squares - count * mean.square()) / (count - 1)).clamp_min(0).sqrt().clamp_min(min_std)
    return -((phi - mean) / std).square() / 2 - std.log()


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1) / mask.sum(1)
