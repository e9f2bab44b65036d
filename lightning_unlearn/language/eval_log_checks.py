"""Metrics of evaluation logs, recomputed from the row values in the logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.functional.language.privacy import priv_leak
from lightning_unlearn.functional.language.truth_ratio import Aggregate, Variant, truth_ratio, truth_ratio_score
from lightning_unlearn.functional.roc import auc
from lightning_unlearn.language.eval_logs import UTILITY_METRICS, EvalLog, LoggedMetric
from lightning_unlearn.language.metrics.forget_quality import forget_quality
from lightning_unlearn.language.metrics.model_utility import harmonic_mean
from lightning_unlearn.language.metrics.probability import normalised_probability
from lightning_unlearn.language.metrics.rouge import rouge

__all__ = ["Rederived", "rederive"]

ROUGE = {"tofu": ("recall", "rougeL_recall"), "muse": ("f1", "rougeL_f1")}


class Rederived(NamedTuple):
    """A number of a log beside the recomputed one.

    Args:
        logged: The number in the log; ``None`` where it has none.
        derived: The number from the rows.
        rows: Largest difference between a row's number in the log and derived again; ``None`` where the log has no
            numbers of rows.
    """

    logged: float | None
    derived: float
    rows: float | None = None

    @property
    def difference(self) -> float | None:
        """Distance of the two numbers; ``None`` where the log has none."""
        return None if self.logged is None else abs(self.logged - self.derived)


def rederive(log: EvalLog, retrained: EvalLog | None = None, variant: Variant = "geometric") -> dict[str, Rederived]:
    """Recompute the numbers of a log from losses, token counts, texts and scores of its rows.

    These are probabilities, ROUGE, truth ratios, model utility, areas of membership attacks and means of other scores;
    with the log of a retrained model also forget quality and PrivLeak.

    Args:
        log: The log, of [`read_eval_log`][lightning_unlearn.language.eval_logs.read_eval_log].
        retrained: The log of a model retrained without the forget rows.
        variant: Of the truth ratio. Logs hold the geometric one, so with ``"arithmetic"`` differences in truth ratios,
            model utility and forget quality are those of the variants.

    Returns:
        By name of the metric both numbers.

    Raises:
        ValueError: If the variant is unknown.
        ImportError: If rouge-score is missing and the log has texts, or scipy is and there is a retrained model.
    """
    one_of("variant", variant, Variant)
    found: dict[str, Rederived] = {}
    for name, metric in log.metrics.items():
        if derive := _derivation(name, metric):
            found[name] = derive(log, name, metric, variant)
    if all(name in found for name in UTILITY_METRICS):
        utility = harmonic_mean(found[name].derived for name in UTILITY_METRICS)
        found["model_utility"] = Rederived(_logged(log, "model_utility"), utility)
    if retrained is not None:
        found |= _against(log, retrained, found, variant)
    return dict(sorted(found.items()))


def _derivation(name: str, metric: LoggedMetric) -> Callable[..., Rederived] | None:
    if metric.parts.keys() >= {"forget", "holdout"}:
        return _membership
    if not metric.rows:
        return None
    first = next(iter(metric.rows.values()))
    if name.endswith("_Prob_normalised"):
        return _normalised
    if name.lower().endswith("truth_ratio"):
        return _truth_ratio
    if "generation" in first and "ground_truth" in first:
        return _rouge
    if "avg_loss" in first:
        return _probability
    return _scores if "score" in first else None


def _probability(log: EvalLog, name: str, metric: LoggedMetric, variant: Variant) -> Rederived:
    means = _mean_losses(metric)
    derived, stored = (-means).exp(), metric.column("prob")
    value = derived.nanmean(1).mean() if derived.dim() == 2 else derived.mean()
    stored_losses = metric.column("avg_loss")
    rows = max(_largest(derived, stored), _largest(means, stored_losses))
    return Rederived(metric.value, float(value), rows)


def _normalised(log: EvalLog, name: str, metric: LoggedMetric, variant: Variant) -> Rederived:
    group = name.removesuffix("_Prob_normalised")
    answers, others = log.metrics[f"{group}_Prob"], log.metrics[f"{group}_PERT_Prob"]
    shared = [index for index in answers.index("avg_loss") if index in set(others.index("avg_loss"))]
    right, wrong = -_mean_losses(answers, shared), -_mean_losses(others, shared)
    derived = normalised_probability(right.exp(), wrong.exp(), log.epsilon)
    return Rederived(metric.value, float(derived.mean()), _largest(derived, metric.column("prob")))


def _truth_ratio(log: EvalLog, name: str, metric: LoggedMetric, variant: Variant) -> Rederived:
    group = name[: -len("_truth_ratio")]
    if f"{group}_Q_A_PERT_Prob" not in log.metrics:
        return _scores(log, name, metric, variant)
    right, wrong = _log_probs(log, group)
    kind: Aggregate = "forget" if group == "forget" else "retain"
    value = truth_ratio_score(right, wrong, kind, variant, log.epsilon).mean()
    ratios = truth_ratio(right, wrong, variant, log.epsilon)
    return Rederived(metric.value, float(value), _largest(ratios, metric.column("score")))


def _rouge(log: EvalLog, name: str, metric: LoggedMetric, variant: Variant) -> Rederived:
    measure, column = ROUGE["muse" if "mem_ROUGE" in name else "tofu"]
    texts = metric.texts("generation"), metric.texts("ground_truth")
    derived = rouge(*texts, measure=measure)  # type: ignore[arg-type]
    rows = _largest(derived, metric.column(column))
    if "rouge1_recall" in next(iter(metric.rows.values())):
        rows = max(rows, _largest(rouge(*texts, kind="rouge1"), metric.column("rouge1_recall")))
    return Rederived(metric.value, float(derived.mean()), rows)


def _membership(log: EvalLog, name: str, metric: LoggedMetric, variant: Variant) -> Rederived:
    area = auc(metric.parts["holdout"].column("score"), metric.parts["forget"].column("score"))
    return Rederived(metric.value, float(area))


def _scores(log: EvalLog, name: str, metric: LoggedMetric, variant: Variant) -> Rederived:
    return Rederived(metric.value, float(metric.column("score").mean()))


def _against(log: EvalLog, retrained: EvalLog, found: dict[str, Rederived], variant: Variant) -> dict[str, Rederived]:
    """Numbers that need a retrained model."""
    more: dict[str, Rederived] = {}
    if all(f"forget_Q_A_{kind}_Prob" in x.metrics for kind in ("PARA", "PERT") for x in (log, retrained)):
        ratios = (truth_ratio(*_log_probs(x, "forget"), variant, x.epsilon) for x in (log, retrained))
        result = forget_quality(*ratios)
        assert result is not None
        more["forget_quality"] = Rederived(_logged(log, "forget_quality"), result.p_value)
    attack = "mia_min_k"
    if attack in found and attack in retrained.metrics:
        reference = _membership(retrained, attack, retrained.metrics[attack], variant).derived
        leak = priv_leak(found[attack].derived, reference)
        more["privleak"] = Rederived(_logged(log, "privleak"), leak)
    return more


def _log_probs(log: EvalLog, group: str) -> tuple[Tensor, Tensor]:
    """Mean log-probabilities of right and wrong answers; without a paraphrase the answer itself is the right one."""
    right = log.metrics.get(f"{group}_Q_A_PARA_Prob") or log.metrics[f"{group}_Q_A_Prob"]
    wrong = log.metrics[f"{group}_Q_A_PERT_Prob"]
    shared = [index for index in right.index("avg_loss") if index in set(wrong.index("avg_loss"))]
    return -_mean_losses(right, shared), -_mean_losses(wrong, shared)


def _mean_losses(metric: LoggedMetric, index: Sequence[int] | None = None) -> Tensor:
    """Losses per token: of sums and counts where they are kept."""
    if "loss" in next(iter(metric.rows.values())):
        return metric.column("loss", index) / metric.column("tokens", index)
    return metric.column("avg_loss", index)


def _largest(derived: Tensor, stored: Tensor) -> float:
    if derived.shape != stored.shape:
        return math.inf
    difference = (derived - stored).abs()
    difference[derived.isnan() & stored.isnan()] = 0  # rows with fewer answers than others
    return float(difference.nan_to_num(nan=math.inf).max())


def _logged(log: EvalLog, name: str) -> float | None:
    return log.metrics[name].value if name in log.metrics else None
