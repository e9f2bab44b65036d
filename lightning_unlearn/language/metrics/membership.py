"""Membership inference from scores of forget and holdout rows: AUC, true-positive rates and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, finite, inside, one_of
from lightning_unlearn.core.intervals import Interval, clopper_pearson
from lightning_unlearn.core.membership import Attack, Shadow, check_attack, check_features, draw_shadow, fit_attack
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.functional.language.privacy import Convention
from lightning_unlearn.functional.roc import auc, delong, tpr_at_fpr

__all__ = [
    "MembershipInference",
    "MembershipResult",
    "TruePositiveRate",
    "membership_inference",
    "nonmember_share",
]

IntervalKind = Literal["delong", "bootstrap"]
Role = Literal["forget", "holdout"]


class TruePositiveRate(NamedTuple):
    """Share of forget rows that an attacker finds at a low false-positive rate.

    Args:
        fpr: The false-positive rate.
        rate: The true-positive rate with its Clopper-Pearson interval, the threshold taken as given.
        allowed: Holdout rows that may be taken for members at this rate; 0 where there are less than ``1 / fpr``.
    """

    fpr: float
    rate: Interval
    allowed: int


class MembershipResult(NamedTuple):
    """Outcome of a membership attack.

    Args:
        auc: Area under the ROC curve with its interval, in the convention asked for.
        tpr: True-positive rates at low false-positive rates.
        n_forget: Forget rows.
        n_holdout: Holdout rows.
    """

    auc: Interval
    tpr: tuple[TruePositiveRate, ...]
    n_forget: int
    n_holdout: int


def membership_inference(
    forget: Tensor,
    holdout: Tensor,
    *,
    convention: Convention = "ou",
    fprs: Sequence[float] = (0.001, 0.01),
    interval: IntervalKind = "delong",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> MembershipResult:
    r"""How well a score tells forget rows from rows that were never trained on.

    $$\mathrm{AUC} = P(s_h > s_f) + \tfrac12 P(s_h = s_f)$$

    Scores $s_f$ of forget and $s_h$ of holdout rows are loss-like: lower for rows that the model knows. An area of 1
    means that forget rows are still recognised.
    Where the two sets are not of one distribution, a *retrained* model does not give 0.5 either (on TOFU 0.31 to 0.50):
    show its area beside this one.

    Args:
        forget: Scores of forget rows, shape ``(N,)``.
        holdout: Scores of holdout rows, shape ``(M,)``.
        convention: ``"ou"`` as above, as in open-unlearning; ``"muse"`` for the complement, as MUSE prints.
        fprs: False-positive rates at which true-positive rates are read off, each in (0, 1).
        interval: ``"delong"``, or ``"bootstrap"`` over rows of both sets. Where all pairs agree, both say nothing, and
            the exact binomial interval of ``min(N, M)`` disjoint pairs is given.
        level: Level of the intervals, in (0, 1).
        draws: Resamples of the bootstrap.
        seed: Seed of the bootstrap, apart from the global random state.

    Returns:
        The area and the true-positive rates, with intervals.

    Raises:
        ValueError: If a set is empty, a score is not finite, or an option is out of range.

    Example:
        >>> result = membership_inference(torch.tensor([0.2, 0.5, 0.9]), torch.tensor([1.0, 0.8, 1.5]))
        >>> round(result.auc.value, 6), result.tpr[0].rate.value, result.tpr[0].allowed
        (0.888889, 0.6666666666666666, 0)

    References:
        Shi et al., *Detecting Pretraining Data from Large Language Models*, arXiv:2310.16789.
        Carlini et al., *Membership Inference Attacks From First Principles*, arXiv:2112.03570.
    """
    finite("scores of forget rows", forget)
    finite("scores of holdout rows", holdout)
    _check_options(convention, fprs, interval, level, draws)
    forget, holdout = forget.detach().cpu().double().reshape(-1), holdout.detach().cpu().double().reshape(-1)
    area = _area(forget, holdout, interval, level, draws, seed)
    if convention == "muse":
        area = Interval(1 - area.value, 1 - area.high, 1 - area.low)
    rates = []
    for fpr in fprs:
        found = float(tpr_at_fpr(-forget, -holdout, fpr))
        allowed = int(fpr * len(holdout) + 1e-9)
        rate = clopper_pearson(round(found * len(forget)), len(forget), level)
        rates.append(TruePositiveRate(fpr, rate, allowed))
    return MembershipResult(area, tuple(rates), len(forget), len(holdout))


def nonmember_share(
    members: Tensor,
    nonmembers: Tensor,
    forget: Tensor,
    *,
    attack: Attack = "svc",
    shadow: Shadow = "random",
    max_shadow: int | None = None,
    seed: int = 0,
) -> float:
    """Share of forget rows that a classifier takes for rows the model was never trained on (SOUL, WAGLE).

    A support vector machine (radial kernel, ``C=3``, ``gamma="auto"``) learns to tell scores of retain rows from scores
    of unseen rows, and never sees a forget row.

    Args:
        members: Scores of retain rows, shape ``(R,)`` or ``(R, D)``.
        nonmembers: Scores of rows never trained on, shape ``(T,)`` or ``(T, D)``.
        forget: Scores of forget rows, shape ``(F,)`` or ``(F, D)``.
        attack: ``"svc"`` as published, or ``"logistic"``.
        shadow: ``"random"`` or ``"first"`` rows of both sides.
        max_shadow: Largest number of rows on each side.
        seed: Seed of the draw, apart from the global random state.

    Returns:
        In [0, 1]; good is the retrained model's value.

    Raises:
        ValueError: If a set is empty, a score is not finite or an option unknown.
        ImportError: If scikit-learn is missing.

    References:
        Jia et al., *SOUL: Unlocking the Power of Second-Order Optimization for LLM Unlearning*, arXiv:2404.18239.
    """
    check_features(members=members, nonmembers=nonmembers, forget=forget)
    check_attack(attack, shadow, max_shadow)
    shadows = draw_shadow(members, nonmembers, shadow=shadow, max_shadow=max_shadow, seed=seed)
    return 1 - float(fit_attack(*shadows, attack)(forget).mean())


class MembershipInference(IndexedMetric):
    """Membership attacks by several scores, each over all rows; see `membership_inference`.

    Args:
        attacks: Names of the scores, such as ``("loss", "zlib", "min_k", "min_k_plus_plus")``.
        convention: ``"ou"`` or ``"muse"``.
        fprs: False-positive rates at which true-positive rates are read off.
        interval: ``"delong"`` or ``"bootstrap"``.
        level: Level of the intervals.
        draws: Resamples of the bootstrap.
        seed: Its seed.

    Raises:
        ValueError: If an option is out of range, a set is empty, or a score is missing.

    Example:
        >>> metric = MembershipInference(("loss",))
        >>> metric.update({"loss": torch.tensor([0.2, 0.5, 0.9])}, "forget", index=[0, 1, 2])
        >>> metric.update({"loss": torch.tensor([1.0, 0.8, 1.5])}, "holdout", index=[0, 1, 2])
        >>> round(metric.compute()["loss"].auc.value, 6)
        0.888889
    """

    higher_is_better: bool | None = None

    def __init__(
        self,
        attacks: Sequence[str] = ("loss", "zlib", "min_k", "min_k_plus_plus"),
        convention: Convention = "ou",
        fprs: Sequence[float] = (0.001, 0.01),
        interval: IntervalKind = "delong",
        level: float = 0.95,
        draws: int = 2000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if not attacks or isinstance(attacks, str):
            raise ValueError(f"attacks must be a list of names of scores, but got {attacks!r}.")
        super().__init__(attacks, ("forget", "holdout"), **kwargs)
        _check_options(convention, fprs, interval, level, draws)
        self.options = {
            **{"convention": convention, "fprs": tuple(fprs), "interval": interval},
            **{"level": level, "draws": draws, "seed": seed},
        }

    def update(self, scores: Mapping[str, Tensor], role: Role, index: Tensor | Sequence[int] | None = None) -> None:
        """Count rows.

        Args:
            scores: By name the loss-like scores ``(B,)``, lower for rows that the model knows.
            role: ``"forget"`` or ``"holdout"``.
            index: Numbers of the rows in their set.
        """
        if set(scores) != set(self.names):
            raise ValueError(f"The scores {sorted(self.names)} are needed, but got {sorted(scores)}.")
        self.record(index, one_of("role", role, Role), **scores)

    def compute(self) -> dict[str, MembershipResult]:
        """The outcome by name of the score."""
        return {
            name: membership_inference(
                self.kept(name, "forget"),
                self.kept(name, "holdout"),
                **self.options,  # type: ignore[arg-type]
            )
            for name in self.names
        }


def _check_options(convention: str, fprs: Sequence[float], interval: str, level: float, draws: int) -> None:
    one_of("convention", convention, Convention)
    one_of("interval", interval, IntervalKind)
    inside("level", level, 0, 1)
    at_least("draws", draws, 1)
    for fpr in fprs:
        inside("fpr", fpr, 0, 1)


def _area(forget: Tensor, holdout: Tensor, kind: str, level: float, draws: int, seed: int) -> Interval:
    area = float(auc(holdout, forget))
    pairs = min(len(forget), len(holdout))
    if area in (0.0, 1.0) or pairs < 2:
        bounds = clopper_pearson(round(area * pairs), pairs, level)
        return Interval(area, min(area, bounds.low), max(area, bounds.high))
    tail = (1 - level) / 2
    if kind == "delong":
        error = float(delong(holdout, forget)[1])
        half = -float(torch.special.ndtri(torch.tensor(tail, dtype=torch.float64))) * error
        return Interval(area, max(0.0, area - half), min(1.0, area + half))
    generator = torch.Generator().manual_seed(seed)
    areas = torch.stack([auc(_resampled(holdout, generator), _resampled(forget, generator)) for _ in range(draws)])
    low, high = areas.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(area, low, high)


def _resampled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randint(len(values), (len(values),), generator=generator)]
