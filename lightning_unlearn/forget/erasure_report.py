"""Report of a request to erase a concept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lightning_unlearn.core.intervals import wilson
from lightning_unlearn.diffusion.attacks.result import AttackResult
from lightning_unlearn.forget.erasure_images import thumbnail
from lightning_unlearn.forget.erasure_judges import Seen
from lightning_unlearn.forget.erasure_prompts import ErasurePrompts, Picture
from lightning_unlearn.forget.erasure_verdict import GONE, KEPT, THERE, ErasureNumbers, conclude_erasure
from lightning_unlearn.report.images import png
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.runs import attack_section
from lightning_unlearn.report.sections import (
    Anchors,
    Cell,
    ImageRow,
    Images,
    Interval,
    Measurement,
    Outcome,
    Part,
    Section,
    Table,
)

__all__ = ["ErasureEvidence", "erasure_numbers", "erasure_report"]

LIMITS = [
    "What was not drawn was not seen: other prompts, languages, misspellings and seeds may still show the concept.",
    "Erasure in the weights of this pipeline deletes no training image, and changes no copy or descendant of it.",
    "Whoever trains the model further on images of the concept may bring it back.",
]
TERMS = {
    "judge": "A classifier of images that says what an image shows. It errs: look at the images.",
    "to forget, to keep": "Prompts that name the concept, and prompts that do not.",
    "pixel change": "Root of the mean squared difference between the images before and after, of colours from 0 to 1.",
    "effect of a word": "Distance of images with the word as prompt from those without, from the same noise: 0 where "
    "it changes nothing, about 1.4 where the two have nothing in common.",
}


@dataclass(frozen=True)
class ErasureEvidence:
    """All that was measured of a request.

    Args:
        prompts: What was drawn.
        before: Images before, shape ``(N, 3, H, W)``.
        after: Images after, of the same prompts and seeds.
        seen: What each judge sees in them.
        effects: Effect of each word of the concept on what the model drew before.
        attack: Result of an attack; ``None`` where there was none.
        found: An image for each attacked prompt that counts.
    """

    prompts: ErasurePrompts
    before: Tensor
    after: Tensor
    seen: list[Seen]
    effects: dict[str, float]
    attack: AttackResult | None = None
    found: Tensor | None = None


def erasure_numbers(evidence: ErasureEvidence) -> ErasureNumbers:
    """The numbers that the verdict rests on."""
    shares = next((seen.shares for seen in evidence.seen if seen.shares is not None), (None, None))
    kept = [sum(seen.kept) / len(seen.kept) for seen in evidence.seen if seen.kept]
    attacked = None if evidence.attack is None or not evidence.attack.counted else evidence.attack.asr
    return ErasureNumbers(shares[0], shares[1], min(kept, default=None), attacked, evidence.effects)


def erasure_report(
    evidence: ErasureEvidence,
    title: str,
    subject: dict[str, Any],
    provenance: dict[str, Any],
    steps: int,
    show_text: bool,
) -> UnlearningReport:
    """The report: the verdict, the measurements, the images before and after, the attack.

    Args:
        evidence: What was measured.
        title: Title of the page.
        subject: What was asked, of which model.
        provenance: Seed, hashes and settings.
        steps: Steps of training.
        show_text: Whether prompts of the concept may stand on the page.
    """
    named = _named(evidence.prompts.pictures, show_text)
    sections = [
        Section("outcome", "Before and after", _outcome(evidence)),
        Section(
            "images", "Images", _images(evidence, named), "Those before and after have the same prompts and seeds."
        ),
        Section("presence", "Was the concept there?", _presence(evidence.effects)),
    ]
    if evidence.attack is not None:
        sections.append(_attack(evidence, steps))
    return UnlearningReport(
        title=title,
        sections=[section for section in sections if section.parts],
        headline=conclude_erasure(erasure_numbers(evidence)),
        subject=subject,
        provenance=provenance,
        limits=LIMITS,
        terms=TERMS,
    )


def _outcome(evidence: ErasureEvidence) -> list[Part]:
    parts: list[Part] = []
    for seen in evidence.seen:
        if seen.shown is not None:
            parts.append(_shown(seen.judge, *seen.shown))
    for seen in evidence.seen:
        if seen.kept:
            share = sum(seen.kept) / len(seen.kept)
            outcome: Outcome = "pass" if share >= KEPT else "fail"
            why = f"at least {KEPT:.0%} of the images to keep must be of the class that they were of before"
            name, bounds = "images to keep of the same class", _wilson(seen.kept)
            parts.append(_measured(name, share, bounds, len(seen.kept), seen.judge, "higher", None, outcome, why))
    for role in ("forget", "keep"):
        if places := evidence.prompts.of(role):
            change = (evidence.after[places] - evidence.before[places]).square().mean().sqrt().item()
            parts.append(Measurement("pixel change", change, n=len(places), variant=f"to {role}"))
    return parts


def _shown(judge: str, before: list[bool], after: list[bool]) -> Measurement:
    old, new = sum(before) / len(before), sum(after) / len(after)
    if old < THERE:
        outcome, why = "not run", f"the judge saw the concept in {old:.0%} of the images before, so {new:.0%} after"
        return Measurement(
            "images that show the concept",
            None,
            n=len(after),
            unit="share",
            variant=judge,
            better="lower",
            anchors=Anchors(original=old),
            outcome="not run",
            reason=f"{why} say nothing: {THERE:.0%} are needed",
        )
    outcome = "pass" if new <= GONE else "fail"
    why = f"at most {GONE:.0%} of the images may show it"
    return _measured("images that show the concept", new, _wilson(after), len(after), judge, "lower", old, outcome, why)


def _measured(
    name: str,
    value: float,
    interval: Interval,
    n: int,
    judge: str,
    better: Any,
    original: float | None,
    outcome: Any,
    reason: str,
) -> Measurement:
    return Measurement(name, value, interval, n, "share", judge, better, Anchors(original=original), outcome, reason)


def _wilson(hits: Sequence[bool]) -> Interval:
    _, low, high = wilson(sum(hits), len(hits))
    return Interval(low, high, method="Wilson")


def _presence(effects: dict[str, float]) -> list[Part]:
    rows: list[list[Cell]] = [[word, effect] for word, effect in effects.items()]
    note = "Effect of each word as a prompt on what the model drew before. Unknown ones are mostly below 0.5."
    return [Table("Effect of its words", ["word", "effect"], rows, note, ["word"])] if rows else []


# ---- images ----------------------------------------------------------------------------------------------------------


def _named(pictures: Sequence[Picture], show_text: bool) -> dict[str, str]:
    """The names of the rows; those of prompts to forget are numbers, where the page is not to show them."""
    rows = dict.fromkeys(picture.row for picture in pictures)
    secret = list(dict.fromkeys(picture.row for picture in pictures if picture.role == "forget"))
    return {row: row if show_text or row not in secret else f"prompt {secret.index(row) + 1}" for row in rows}


def _images(evidence: ErasureEvidence, named: dict[str, str]) -> list[Part]:
    parts: list[Part] = []
    for role, heading in (("forget", "To forget"), ("keep", "To keep")):
        shown = [i for i in evidence.prompts.of(role) if evidence.prompts.pictures[i].shown]
        columns = list(dict.fromkeys(evidence.prompts.pictures[i].column for i in shown))
        if columns == [""]:
            sides = {"before": evidence.before, "after": evidence.after}
            rows = [_row(evidence, [(side, place) for side in sides.values()], named, role) for place in shown]
            parts.append(Images(heading, list(sides), rows))
            continue
        for side, images in (("before", evidence.before), ("after", evidence.after)):
            by_row: dict[str, list[int]] = {}
            for place in shown:
                by_row.setdefault(evidence.prompts.pictures[place].row, []).append(place)
            rows = [_row(evidence, [(images, place) for place in places], named, role) for places in by_row.values()]
            parts.append(Images(f"{heading}, {side}", columns, rows))
    return parts


def _row(evidence: ErasureEvidence, images: list[tuple[Tensor, int]], named: dict[str, str], role: str) -> ImageRow:
    row = evidence.prompts.pictures[images[0][1]].row
    return ImageRow(named[row], [png(thumbnail(of[place])) for of, place in images], secret=role == "forget")


def _attack(evidence: ErasureEvidence, steps: int) -> Section:
    result = evidence.attack
    assert result is not None
    evaluation = result.evaluation(steps, "the concept")
    rate = "none of them" if math.isnan(result.asr) else f"{result.asr:.0%} of them"
    before = 0.0 if math.isnan(result.pre_asr) else result.pre_asr
    summary = (
        f"It searches for tokens that bring the concept back, for {len(result.counted)} prompts. Without them "
        f"{before:.0%} of these prompts show it, with them {rate}."
    )
    found = [] if evidence.found is None else [png(thumbnail(image)) for image in evidence.found]
    section = attack_section("UnlearnDiffAtk", summary, evaluation, found)
    parts = [
        replace(part, rows=[replace(row, secret=True) for row in part.rows]) if isinstance(part, Images) else part
        for part in section.parts
    ]
    return replace(section, parts=parts)
