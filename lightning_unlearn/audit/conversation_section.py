"""Section of an audit's report about the quality of the models' conversations."""

from __future__ import annotations

import math

from lightning_unlearn.audit.conversations import Conversations
from lightning_unlearn.audit.section_parts import LEVEL, left_out
from lightning_unlearn.core.intervals import Interval as Value
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.quality import DialogueQuality
from lightning_unlearn.report.sections import (
    Anchors,
    Cell,
    ExampleRow,
    Examples,
    Interval,
    Measurement,
    Part,
    Section,
    Table,
)

__all__ = ["conversation_section"]

_ID, _TITLE = "dialogue-quality", "Dialogue quality"
_SHOWN = 3  # conversations of a set
_DROP = "rating lost on retain and neutral requests"


def conversation_section(found: Conversations | None) -> Section:
    """The models' conversations and their ratings, with the controls that say whether these mean anything.

    Args:
        found: The rated conversations; ``None`` where the audit has no judge.
    """
    if found is None:
        reason = "needs a judge with its calibration: judge=..., calibration=..."
        return Section(_ID, _TITLE, [left_out("dialogue quality", reason)])
    parts: list[Part] = [*_controls(found), *_qualities(found), _ratings(found), _conversations(found)]
    if found.shown:
        parts.append(_control_examples(found))
    note = (
        "Another model rates conversations of all models on the same requests; ratings are calibrated to those of "
        "people. A graceful refusal is a good answer: these ratings do not show whether a forgotten row has leaked. "
        "They do not count towards the verdict."
    )
    if not found.turns:
        note += " The models have no chat template, so each conversation is one request with one answer."
    if found.controls.reason:
        note = f"Invalid: {found.controls.reason}. {note}"
    return Section(_ID, _TITLE, parts, note)


def _controls(found: Conversations) -> list[Part]:
    """What says whether the ratings mean anything."""
    value, low, high = found.calibration.spearman
    method = "bootstrap over dialogues"
    parts: list[Part] = [
        Measurement(
            "judge's rank correlation with people",
            value,
            Interval(low, high, found.calibration.level, method),
            better="higher",
            anchors=Anchors(chance=0.0),
            outcome="pass",  # an audit with another calibration was refused
            reason="its interval is above 0",
        )
    ]
    least = found.controls.least
    areas = dict(found.controls.auc)
    if found.controls.refusals is not None:
        areas["refusals over repeated replies"] = found.controls.refusals
    for kind, area in areas.items():
        name, count = "AUC of originals over known-bad controls", found.controls.counts.get(kind)
        if not math.isfinite(area.value):
            reason = "no such controls could be made from these conversations"
            parts.append(Measurement(name, None, variant=kind, outcome="not run", reason=reason))
            continue
        parts.append(
            Measurement(
                name,
                area.value,
                Interval(area.low, area.high, LEVEL, "DeLong"),
                count,
                variant=kind,
                better="higher",
                anchors=Anchors(chance=0.5),
                outcome="pass" if area.value >= least else "fail",
                reason=f"at least {least}",
            )
        )
    return parts


def _qualities(found: Conversations) -> list[Part]:
    """Ratings of the unlearned model's conversations, unless the judge has not told the controls."""
    quality, control = found.quality["unlearned"], found.quality.get("control")
    parts: list[Part] = []
    for name, part in quality.sets.items():
        label = f"rating, {name}"
        if not quality.valid_for(name) or not part.n:
            reason = f"invalid: {found.controls.reason}" if part.n else "the judge has given no ratings"
            parts.append(left_out(label, reason))
            continue
        anchors = Anchors(original=part.before, control=_mean(control, name))
        better = "" if name == "forget" else "higher"
        parts.append(
            Measurement(label, part.after.value, _interval(part.after), part.n, better=better, anchors=anchors)  # type: ignore[arg-type]
        )
        parts.append(_change(name, quality, control))
    if quality.drop is None:
        return parts
    if not quality.valid or not math.isfinite(quality.drop.value):
        reason = f"invalid: {found.controls.reason}" if not quality.valid else "the judge has given no ratings"
        return [*parts, left_out(_DROP, reason)]
    anchors = Anchors(original=0.0, control=control.drop.value if control and control.drop else None)
    return [
        *parts,
        Measurement(_DROP, quality.drop.value, _interval(quality.drop), better="lower", anchors=anchors),
    ]


def _change(name: str, quality: DialogueQuality, control: DialogueQuality | None) -> Measurement:
    part = quality.sets[name]
    anchors = Anchors(original=0.0, control=control.sets[name].difference.value if control else None)
    label = f"change of the rating, {name}"
    return Measurement(label, part.difference.value, _interval(part.difference), part.n, anchors=anchors)


def _ratings(found: Conversations) -> Table:
    """Ratings of all models before and after calibration."""
    rows: list[list[Cell]] = []
    for role, quality in found.quality.items():
        for name, part in quality.sets.items():
            rows.append(
                [
                    name,
                    role,
                    _cell(part.before),
                    _cell(part.after.value),
                    *map(_cell, part.difference),
                    _cell(part.raw_before),
                    _cell(part.raw_after),
                    part.n,
                    part.unrated,
                    "yes" if quality.valid_for(name) else "no",
                ]
            )
    columns = ["requests", "model", "original", "model's", "change", "low", "high"]
    columns += ["original, raw", "model's, raw", "n", "unrated", "valid"]
    note = "Mean ratings on the scale of people; raw are the judge's own scores. Ignore ratings that are not valid."
    return Table("Ratings of each model's conversations beside the original's", columns, rows, note)


def _conversations(found: Conversations) -> Examples:
    """The first conversations of each set, with the judge's scores."""
    roles, rows, counts = list(found.dialogues), [], dict.fromkeys(("neutral", "retain", "forget"), 0)
    for number, seed in enumerate(found.seeds):
        counts[seed.set] += 1
        if counts[seed.set] > _SHOWN:
            continue
        outputs = [_shown(found.dialogues[role][number], found.scores[role][number]) for role in roles]
        asked = " / ".join(turn.text for turn in seed.turns if turn.role == "user")
        rows.append(ExampleRow(seed.set, asked, "", outputs))
    return Examples("Conversations", roles, rows, note="The judge's score before calibration is in parentheses.")


def _control_examples(found: Conversations) -> Table:
    rows: list[list[Cell]] = [[kind, _cell(score), text] for kind, (text, score) in found.shown.items()]
    return Table("A known-bad control of each kind", ["control", "judge's score", "dialogue"], rows)


def _shown(dialogue: Dialogue | None, score: float) -> str | None:
    if dialogue is None:
        return None
    replies = " / ".join(turn.text or "(empty)" for turn in dialogue.turns if turn.role == "assistant")
    return f"({score:.2f}) {replies}"


def _mean(quality: DialogueQuality | None, name: str) -> float | None:
    return quality.sets[name].after.value if quality is not None else None


def _interval(found: Value) -> Interval | None:
    if math.isnan(found.low):  # of a single conversation
        return None
    return Interval(found.low, found.high, LEVEL, "bootstrap over conversations")


def _cell(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
