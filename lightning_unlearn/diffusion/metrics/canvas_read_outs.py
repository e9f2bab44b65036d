"""Rates of one model on an answer set with their intervals: UA, IRA, CRA, style-object pairs, and redirection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.intervals import Interval, wilson
from lightning_unlearn.diffusion.canvas.counts import answer_counts, complete, target_cells
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.functional.diffusion.canvas_accuracy import pair_quadrants

__all__ = ["PairTest", "canvas_read_out", "confusion", "pair_read_out", "redirects"]

PairTest = Literal["both", "style", "object"]
"""What is right in an image of a pair."""


def canvas_read_out(
    scores: AnswerScores,
    target: str,
    include_target: bool = True,
    seeds: Sequence[int] | None = None,
    photo: bool = False,
    level: float = 0.95,
) -> dict[str, Interval]:
    """UA, IRA and CRA of one model with Wilson intervals, as if images were drawn independently.

    Args:
        scores: Verdicts on the images of the model.
        target: The style or object that it has unlearned.
        include_target: Whether CRA counts the images in which the target was asked for, as the published code does.
        seeds: The seeds that count, by default all.
        photo: Whether prompts for photos count, see [`AccuracyMatrix`][lightning_unlearn.AccuracyMatrix].
        level: Level of the intervals, in (0, 1).

    Returns:
        ``UA``, ``IRA`` and ``CRA``.

    Raises:
        IncompleteAnswers: If an image is missing.
        ValueError: If the target is unknown, or the level out of range.
    """
    seeds = scores.seeds if seeds is None else seeds
    cells = target_cells(scores.names, target, photo)
    complete({target: scores}, seeds, photo)
    counts = answer_counts(scores, seeds, photo)
    own, other = (counts.style, counts.object)[:: 1 if scores.names.kind(target) == "style" else -1]
    across = torch.ones_like(cells) if include_target else ~cells
    return {
        "UA": _rate(counts.n - own, counts.n, cells, level),
        "IRA": _rate(own, counts.n, ~cells, level),
        "CRA": _rate(other, counts.n, across, level),
    }


def pair_read_out(
    scores: AnswerScores,
    style: str,
    object: str,
    test: PairTest = "both",
    seeds: Sequence[int] | None = None,
    photo: bool = False,
    level: float = 0.95,
) -> dict[str, Interval]:
    """UA, SC, OC and UP of a model that has unlearned a style-object pair, with Wilson intervals.

    UA is the share of the pair's images that are not right, SC the share of right ones of the style with other objects,
    OC of the object in other styles, UP of other objects in other styles. The published study has no definition of a
    right image, nor numbers of images.

    Args:
        scores: Verdicts on the images of the model.
        style: Style of the pair.
        object: Object of the pair.
        test: Whether an image is right if both, its style or its object is what was asked for.
        seeds: The seeds that count for all but the pair itself, by default all; the pair has all seeds of the scores.
        photo: Whether prompts for photos count as one more style.
        level: Level of the intervals, in (0, 1).

    Returns:
        ``UA``, ``SC``, ``OC`` and ``UP``.

    Raises:
        IncompleteAnswers: If an image is missing.
        ValueError: If the style or object is unknown, or an option out of range.
    """
    names = scores.names
    one_of("test", test, PairTest)
    place = (
        names.styles.index(one_of("style", style, names.styles)),
        names.objects.index(one_of("object", object, names.objects)),
    )
    size = len(names.all_styles if photo else names.styles), len(names.objects)
    pair, *others = pair_quadrants(*size, *place)
    seeds = scores.seeds if seeds is None else seeds
    label = f"{style} x {object}"
    complete({label: scores}, scores.seeds, photo, pair)
    complete({label: scores}, seeds, photo, ~pair)
    whole, rest = answer_counts(scores, None, photo), answer_counts(scores, seeds, photo)
    return {
        "UA": _rate(whole.n - getattr(whole, test), whole.n, pair, level),
        **{
            name: _rate(getattr(rest, test), rest.n, cells, level)
            for name, cells in zip(("SC", "OC", "UP"), others, strict=True)
        },
    }


def confusion(scores: AnswerScores, kind: Kind, seeds: Sequence[int] | None = None, photo: bool = False) -> Tensor:
    """How often images of each style or object get each label.

    Args:
        scores: Verdicts on the images of a model; images that are missing are not counted.
        kind: Styles or objects.
        seeds: The seeds that count, by default all.
        photo: Whether prompts for photos count.

    Returns:
        Counts, int64: shape ``(S, S + 1)`` for styles, the photos being the last label (and a row too where they
        count), and ``(O, O)`` for objects.
    """
    names = scores.names
    labels = len(names.all_styles if one_of("kind", kind, Kind) == "style" else names.objects)
    places = [scores.seeds.index(seed) for seed in (scores.seeds if seeds is None else seeds)]
    rows = None if photo else len(names.styles)
    predicted, seen = getattr(scores, kind)[:rows, :, places], scores.seen[:rows, :, places]
    asked = torch.arange(predicted.shape[0])[:, None, None] if kind == "style" else torch.arange(labels)[:, None]
    size = predicted.shape[0] if kind == "style" else labels
    flat = (asked.expand_as(predicted) * labels + predicted)[seen]
    return torch.bincount(flat, minlength=size * labels).view(size, labels)


def redirects(
    scores: AnswerScores, target: str, seeds: Sequence[int] | None = None, photo: bool = False
) -> dict[str, int]:
    """Labels that the images of a target get from the judge of its kind, the most frequent first.

    UA alone does not tell a model that draws another concept from one that draws noise.
    `lightning_unlearn.functional.redirect_entropy` says how evenly the labels are spread.

    Args:
        scores: Verdicts on the images of the model.
        target: A style or an object.
        seeds: The seeds that count, by default all.
        photo: Whether photos of an object count.

    Returns:
        Count of every label, the target's own and zeros included.

    Raises:
        IncompleteAnswers: If an image of the target is missing.
        ValueError: If the target is unknown.
    """
    names = scores.names
    complete({target: scores}, scores.seeds if seeds is None else seeds, photo, target_cells(names, target, photo))
    kind = names.kind(target)
    counts = confusion(scores, kind, seeds, photo)[names.of(kind).index(target)].tolist()
    labels = names.all_styles if kind == "style" else names.objects
    return dict(sorted(zip(labels, counts, strict=True), key=lambda entry: -entry[1]))


def _rate(hits: Tensor, n: Tensor, cells: Tensor, level: float) -> Interval:
    if not (images := int(n[cells].sum())):
        raise ValueError("IRA, and CRA without the target's images, need another concept of the target's kind.")
    return wilson(int(hits[cells].sum()), images, level)
