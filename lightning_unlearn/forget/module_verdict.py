"""Verdict on a request about a user's module, by stated thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from lightning_unlearn.forget.module_measures import Membership, RowMeasures, membership
from lightning_unlearn.relearning import RelearningCurve, relearn_time
from lightning_unlearn.report.measurements import Outcome
from lightning_unlearn.report.model import Headline

__all__ = ["Criterion", "Thresholds", "conclude", "criteria", "headline", "knew"]

_Z = 1.96  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Thresholds:
    """What counts as forgotten, and as kept.

    Args:
        auc_margin: Largest distance of the membership AUC from 0.5.
        drop: Largest loss of accuracy on rows to keep and on rows never seen.
        loss_rise: Largest rise of the loss on them, as a share of it, for modules without classes.
        control_gap: Largest distance from the accuracy of the retrained model on the rows to forget.
        relearning: Smallest share of the retrained model's steps in which the rows are learned again.
    """

    auc_margin: float = 0.1
    drop: float = 0.02
    loss_rise: float = 0.1
    control_gap: float = 0.05
    relearning: float = 0.5

    def as_dict(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class Criterion:
    """One threshold, and whether the model meets it.

    Args:
        kind: ``"forgetting"``, ``"keeping"`` or ``"relearning"``.
        name: What is measured.
        threshold: The threshold, in words.
        measured: The measured numbers, in words.
        outcome: ``"pass"``, ``"fail"``, or ``"not run"`` where the rows are too few, or something is missing.
    """

    kind: str
    name: str
    threshold: str
    measured: str
    outcome: Outcome


def knew(before: Mapping[str, RowMeasures], whole_class: bool, thresholds: Thresholds) -> bool | None:
    """Whether the model before knew what is to be forgotten; ``None`` where nothing tells.

    It knew a class whose rows it classifies better than chance, and rows that a threshold on the likelihood tells from
    rows that it never saw.
    """
    forget = before["forget"]
    if whole_class:
        if forget.accuracy is None or forget.classes is None:
            return None
        return forget.accuracy > min(1 / forget.classes + thresholds.auc_margin, 0.99)
    if "test" not in before:
        return None
    return membership(forget.nll, before["test"].nll).auc - 0.5 > thresholds.auc_margin


def criteria(
    before: Mapping[str, RowMeasures],
    after: Mapping[str, RowMeasures],
    control: Mapping[str, RowMeasures] | None,
    curve: RelearningCurve | None,
    whole_class: bool,
    thresholds: Thresholds,
) -> list[Criterion]:
    """Every threshold that the measured sets allow to check."""
    found = _class_forgotten(after) if whole_class else [_membership(after, thresholds)]
    if control is not None:
        found += _near_control(after, control, thresholds)
    for name in ("retain", "test"):
        if name in after:
            found.append(_kept(name, before[name], after[name], thresholds))
    if "test" not in after:
        text = "the data module gives no test or validation rows"
        found.append(Criterion("keeping", "rows never seen", "their accuracy or loss is kept", text, "not run"))
    return [*found, _relearning(curve, thresholds)]


def _membership(after: Mapping[str, RowMeasures], thresholds: Thresholds) -> Criterion:
    margin = thresholds.auc_margin
    threshold = f"AUC of a threshold on the likelihood within {margin:g} of 0.5"
    name = "rows to forget look like rows never seen"
    if "test" not in after:
        text = "the data module gives no test or validation rows"
        return Criterion("forgetting", name, threshold, text, "not run")
    found: Membership = membership(after["forget"].nll, after["test"].nll)
    distance, spread = abs(found.auc - 0.5), _Z * found.error
    text = f"{found.auc:.3f} ± {spread:.3f}"
    if distance - spread > margin:
        return Criterion("forgetting", name, threshold, text, "fail")
    if spread > margin:
        return Criterion("forgetting", name, threshold, f"{text}: too few rows to tell", "not run")
    return Criterion("forgetting", name, threshold, text, "pass" if distance <= margin else "fail")


def _class_forgotten(after: Mapping[str, RowMeasures]) -> list[Criterion]:
    found = []
    for name, words in (("forget", "rows of the class"), ("test_forget", "rows of the class never seen")):
        if name not in after:
            continue
        rows = after[name]
        if rows.accuracy is None or rows.classes is None:
            text = f"mean loss {rows.mean_nll:.4g}, for which there is no chance level"
            found.append(Criterion("forgetting", words, "accuracy at most that of guessing", text, "not run"))
            continue
        chance = 1 / rows.classes
        outcome: Outcome = "pass" if rows.accuracy <= chance else "fail"
        threshold = f"accuracy at most that of guessing, {chance:.1%}"
        found.append(Criterion("forgetting", words, threshold, f"{rows.accuracy:.1%}", outcome))
    return found


def _near_control(
    after: Mapping[str, RowMeasures], control: Mapping[str, RowMeasures], thresholds: Thresholds
) -> list[Criterion]:
    a, b = after["forget"].accuracy, control["forget"].accuracy
    if a is None or b is None:
        return []
    outcome: Outcome = "pass" if abs(a - b) <= thresholds.control_gap else "fail"
    threshold = f"accuracy within {100 * thresholds.control_gap:g} points of the retrained model's"
    return [Criterion("forgetting", "rows to forget", threshold, f"{a:.1%}, retrained {b:.1%}", outcome)]


def _kept(name: str, before: RowMeasures, after: RowMeasures, thresholds: Thresholds) -> Criterion:
    words = {"retain": "rows to keep", "test": "rows never seen"}[name]
    if before.accuracy is not None and after.accuracy is not None:
        threshold = f"accuracy at most {100 * thresholds.drop:g} points lower"
        text = f"{before.accuracy:.1%} before, {after.accuracy:.1%} after"
        outcome: Outcome = "pass" if before.accuracy - after.accuracy <= thresholds.drop else "fail"
        return Criterion("keeping", words, threshold, text, outcome)
    allowed = before.mean_nll + thresholds.loss_rise * abs(before.mean_nll)
    threshold = f"loss at most {100 * thresholds.loss_rise:g} % higher"
    text = f"{before.mean_nll:.4g} before, {after.mean_nll:.4g} after"
    return Criterion("keeping", words, threshold, text, "pass" if after.mean_nll <= allowed else "fail")


def _relearning(curve: RelearningCurve | None, thresholds: Thresholds) -> Criterion:
    name = "learning the rows again"
    threshold = f"takes at least {thresholds.relearning:g} of the retrained model's steps"
    if curve is None or curve.control is None or curve.original is None:
        text = "needs a model that was trained without the rows: --retrained c.ckpt"
        return Criterion("relearning", name, threshold, text, "not run")
    target = curve.original.values[0] + 0.05 * abs(curve.original.values[0])
    if target <= 0:
        return Criterion("relearning", name, threshold, "the loss is not positive", "not run")
    own, control = relearn_time(curve, target), relearn_time(curve.control, target)
    text = ", ".join(
        f"{words} {'' if time.reached else 'more than '}{time.steps} steps"
        for words, time in (("unlearned", own), ("retrained", control))
    )
    if not control.steps:
        return Criterion("relearning", name, threshold, f"{text}: the retrained model knows the rows", "not run")
    outcome: Outcome = "pass" if not own.reached or own.steps >= thresholds.relearning * control.steps else "fail"
    return Criterion("relearning", name, threshold, text, outcome)


def conclude(found: Sequence[Criterion], knew_before: bool | None, control: bool) -> str:
    """The word of the verdict: the first of these that holds.

    *no verdict*: the model before knew nothing of what is to be forgotten. *damaged*: something to keep was lost.
    *not forgotten*: a threshold of forgetting is missed. *suppressed but recoverable*: the rows are learned again too
    fast. *undecided*: a threshold could not be checked. *forgotten*, or without a retrained model *no trace found, no
    control*.
    """
    outcomes = {kind: [c.outcome for c in found if c.kind == kind] for kind in ("forgetting", "keeping", "relearning")}
    if knew_before is False:
        return "no verdict"
    if "fail" in outcomes["keeping"]:
        return "damaged"
    if "fail" in outcomes["forgetting"]:
        return "not forgotten"
    if "fail" in outcomes["relearning"]:
        return "suppressed but recoverable"
    decided = [*outcomes["keeping"], *outcomes["forgetting"], *(outcomes["relearning"] if control else [])]
    if knew_before is None or "not run" in decided:
        return "undecided"
    return "forgotten" if control else "no trace found, no control"


_TONES = {
    "no verdict": "neutral",
    "damaged": "bad",
    "not forgotten": "bad",
    "suppressed but recoverable": "warning",
    "undecided": "neutral",
    "forgotten": "good",
    "no trace found, no control": "good",
}
_SUMMARIES = {
    "no verdict": "The model before shows no knowledge of what was to be forgotten that could be told from that of "
    "rows it never saw, so this evidence can't show that anything was forgotten.",
    "damaged": "The model has lost more of what was to be kept than is allowed.",
    "not forgotten": "The model still tells what was to be forgotten from what it never saw.",
    "suppressed but recoverable": "The model shows no trace, but a few steps of training bring it back, faster than in "
    "a model that never saw it.",
    "undecided": "Some of the evidence that a verdict needs is missing.",
    "forgotten": "By all of the thresholds below, the model is like one that was trained without what was to be "
    "forgotten.",
    "no trace found, no control": "The tests find no trace of what was to be forgotten. There is no retrained model to "
    "compare with, so they can't tell forgotten from hidden.",
}
_ADVICE = {
    "no verdict": "Rows that the model never memorized need no unlearning to be safe from these tests. Retrain without "
    "them where a deletion must be exact.",
    "damaged": "Use less of the learning rate (--learning_rate_factor), fewer steps (--max_steps), or another method.",
    "not forgotten": "Give more steps (--max_steps) or more of the learning rate (--learning_rate_factor), or another "
    "method. Rows that are now less likely than rows never seen can be told from them as well: then give less.",
    "suppressed but recoverable": "Treat the rows as still contained in the model. Try another method, or retrain.",
    "undecided": "The table of thresholds says what is missing.",
    "forgotten": "File the record.",
    "no trace found, no control": "File the record. For a stronger claim, train a model without the rows and give its "
    "checkpoint: --retrained c.ckpt.",
}


def headline(word: str, found: Sequence[Criterion]) -> Headline:
    """The verdict with what decided it."""
    decisive = {"damaged": "keeping", "not forgotten": "forgetting", "suppressed but recoverable": "relearning"}
    if (kind := decisive.get(word)) is not None:
        shown = [c for c in found if c.kind == kind and c.outcome == "fail"]
    elif word == "undecided":
        shown = [c for c in found if c.outcome == "not run"]
    else:
        shown = [c for c in found if c.outcome != "not run"]
    reasons = [f"{c.name[0].upper()}{c.name[1:]}: {c.measured} ({c.threshold})." for c in shown]
    return Headline(word, _TONES[word], _SUMMARIES[word], reasons, [_ADVICE[word]])  # type: ignore[arg-type]
