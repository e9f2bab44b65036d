"""Agreement of a judge's ratings with people's, and their calibration."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.dialogue.bias import dialogue_lengths, length_bias
from lightning_unlearn.dialogue.calibration import LEAST_DIALOGUES, Calibration
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.metrics.rating_metrics import RatingMetrics
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.rating_files import without_nan

__all__ = ["agreement", "calibration_of", "write_calibrated"]


def agreement(ratings: Sequence[Rating], dialogues: Sequence[Dialogue], task: str, seed: int) -> dict[str, Any]:
    """Share of ratings that were parsed, mass of the labels, length bias, and agreement with people's ratings.

    Args:
        ratings: Ratings of the judge.
        dialogues: What it has rated.
        task: Name of the task.
        seed: Seed of the intervals.
    """
    pairs = [(rating, part) for rating, part in zip(ratings, dialogues, strict=True) if part.ratings]
    summary: dict[str, Any] = {"parse_rate": sum(rating.parsed for rating in ratings) / max(1, len(ratings))}
    masses = [rating.vocab_mass for rating in ratings if rating.vocab_mass is not None]
    if masses:
        summary["vocab_mass"] = math.fsum(masses) / len(masses)
    scored = [place for place, rating in enumerate(ratings) if not math.isnan(rating.score)]
    if len(scored) >= 3:
        lengths = dialogue_lengths([dialogues[place] for place in scored])
        found_bias = length_bias([ratings[place].score for place in scored], lengths, seed=seed)
        summary["length_bias"] = found_bias.spearman._asdict()
    if len([1 for rating, _ in pairs if not math.isnan(rating.score)]) < 3:
        return summary
    metrics = RatingMetrics(task)
    metrics.update([rating for rating, _ in pairs], [part for _, part in pairs])
    found: dict[str, Interval] = metrics.intervals(seed=seed)
    return {**summary, "agreement": {name: value._asdict() for name, value in found.items()}}


def calibration_of(
    folder: Path,
    task: str,
    known: Sequence[Rating],
    held_out: Sequence[Dialogue],
    own: Sequence[Rating],
    seed: int,
    knows_bad: bool,
) -> Calibration:
    """Calibrate the judge to held-out dialogues, and write ``calibration.json``.

    Args:
        folder: Where to.
        task: Name of the task.
        known: The judge's ratings of the held-out dialogues.
        held_out: Dialogues that people have rated.
        own: The judge's ratings of the dialogues of a fingerprint.
        seed: Seed of the split.
        knows_bad: Whether the judge gives certainly bad dialogues the lowest score.

    Raises:
        ValueError: If the judge gave a rating for too few of them.
    """
    pairs = [(rating.score, part.mean) for rating, part in zip(known, held_out, strict=True)]
    used = [(score, mean) for score, mean in pairs if not math.isnan(score)]
    if len(used) < LEAST_DIALOGUES:
        raise ValueError(
            f"The judge gave a rating for {len(used)} of the {len(pairs)} dialogues in --calibrate, but a calibration "
            f"needs {LEAST_DIALOGUES}. Its texts are in {folder / 'calibration_ratings.jsonl'}. Use --route logits, or "
            "raise --max_new_tokens."
        )
    calibration = Calibration(task, seed=seed)
    floor = calibration.low if knows_bad else None
    scores, means = zip(*used, strict=True)
    calibration.fit(scores, means, floor, judge=[rating.score for rating in own])
    calibration.save(folder / "calibration.json")
    if not calibration.trusted:
        print("The judge's scores do not agree with people's ratings: their correlation's interval is not above 0.")
    return calibration


def write_calibrated(
    folder: Path, calibration: Calibration, ratings: Sequence[Rating], rated: Sequence[Dialogue], level: float
) -> None:
    """Write ``calibrated.jsonl``, with each score on people's scale and its interval.

    Args:
        folder: Where to.
        calibration: The judge's calibration.
        ratings: Its ratings.
        rated: What it has rated.
        level: Level of the intervals.
    """
    rows = []
    for rating, part in zip(ratings, rated, strict=True):
        there = not math.isnan(rating.score)
        interval = calibration.interval(rating.score, level) if there else Interval(math.nan, math.nan, math.nan)
        rows.append({"id": part.id, **without_nan(interval._asdict())})
    write_text(folder / "calibrated.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
