"""Metrics of language models over rows that two processes share as a distributed sampler shares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightning_unlearn.functional.language.truth_ratio import truth_ratio
from lightning_unlearn.language.metrics import (
    MODEL_UTILITY,
    ForgetQuality,
    MembershipInference,
    ModelUtility,
    MultipleChoice,
    OutputQuality,
    PrivLeak,
    Probability,
    TruthRatio,
    WholeWordMatch,
)

ROWS = 41  # an odd number, so that a sampler gives one row to both processes

WORDS = ("Paris", "Rome", "I don't know that.", "", "it is it is it is it is Lima")


def language_metrics(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """Each metric of the same rows."""
    processes = 1 if layout == "one" else 2
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    rank = dist.get_rank() if processes > 1 else 0
    padded = ROWS + ROWS % processes
    mine = (torch.arange(padded) % ROWS)[rank::processes]
    generator = torch.Generator().manual_seed(0)
    answers = [-torch.rand(3 + row % 5, generator=generator) for row in range(ROWS)]
    wrong = [[-2 * torch.rand(4, generator=generator) for _ in range(1 + row % 3)] for row in range(ROWS)]
    scores = torch.randn(4, ROWS, generator=generator, dtype=torch.float64)
    texts = [WORDS[row % len(WORDS)] for row in range(ROWS)]
    found: dict[str, Any] = {
        "probability": Probability(),
        "truth_ratio": TruthRatio(),
        "words": WholeWordMatch(),
        "quality": OutputQuality(),
        "choices": MultipleChoice(),
        "forget_quality": ForgetQuality(),
        "membership": MembershipInference(("loss",)),
        "privleak": PrivLeak(),
        "utility": ModelUtility(),
    }
    for rows in mine.split(7):
        index = rows.tolist()
        found["probability"].update([answers[i] for i in index], index)
        found["truth_ratio"].update([answers[i] for i in index], [wrong[i] for i in index], index)
        found["words"].update([texts[i] for i in index], ["Rome"] * len(index), index)
        found["quality"].update([texts[i] for i in index], index)
        found["choices"].update(scores[:, rows].T, rows % 4, index)
        for number, role in enumerate(("unlearned", "retrained")):
            ratios = truth_ratio(scores[number, rows], scores[2:, rows].T)
            found["forget_quality"].update(ratios, role, index)
        for number, role in enumerate(("forget", "holdout")):
            found["membership"].update({"loss": scores[number, rows]}, role, index)
            found["privleak"].update(scores[number, rows], role, index)
        for part in MODEL_UTILITY:
            found["utility"].update(part, scores[0, rows].abs(), index)
    if rank == processes - 1:  # the other process has no row of the retrained model
        for number, role in enumerate(("retrained_forget", "retrained_holdout")):
            found["privleak"].update(scores[2 + number], role, range(ROWS))
    return {name: _flat(metric.compute()) for name, metric in found.items()}


def _flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return [number for part in value for number in _flat(part)]
    return [float("nan") if value is None else float(value)]
