"""Runs cases of the table and saves their results: `python -m tests.distributed.run MODELS RESULTS LAYOUT:CASE...`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.cases import CASES
from tests.lightning_costs import spare
from tests.tiny_models import read_once

torch.set_num_threads(1)
spare()

if __name__ == "__main__":
    models, results = map(Path, sys.argv[1:3])
    for folder in models.iterdir():
        read_once(folder)
    for word in sys.argv[3:]:
        layout, case = word.split(":")
        result = CASES[case](layout, models, results / f"{layout}-{case}")
        torch.save(result, results / f"{layout}-{case}.{dist.get_rank() if dist.is_initialized() else 0}.pt")
