"""Metrics of ratings of dialogues that two processes share as a distributed sampler shares them."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from lightning_unlearn.dialogue.metrics.rating_metrics import RatingMetrics
from tests.dialogue.fixtures import rated

ROWS = 41  # an odd number, so that a sampler gives one row to both processes


def rating_metrics(layout: str, models: Path, path: Path) -> dict[str, list[float]]:
    """Each statistic of the same ratings, with its interval; one process has all ratings of a second metric."""
    processes = 1 if layout == "one" else 2
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    rank = dist.get_rank() if processes > 1 else 0
    mine = (torch.arange(ROWS + ROWS % processes) % ROWS)[rank::processes]
    human = torch.randint(1, 6, (ROWS,), generator=torch.Generator().manual_seed(0)).double()
    scores = human + torch.randn(ROWS, generator=torch.Generator().manual_seed(1)).double()
    scores[5] = torch.nan
    rows, metric, alone = rated(*human.tolist()), RatingMetrics(draws=30), RatingMetrics()
    for part in mine.split(7):
        metric.update(scores[part], [rows[number] for number in part.tolist()])
    if rank == processes - 1:
        alone.update(scores, rows)
    found = {name: [value.item()] for name, value in metric.compute().items()}
    found |= {f"{name}, alone": [value.item()] for name, value in alone.compute().items()}
    return found | {f"{name}, interval": list(three) for name, three in metric.intervals(draws=30).items()}
