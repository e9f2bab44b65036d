"""Two processes that share the rows compute what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_unlearn.classification.metrics.accuracy import RA, UA
from lightning_unlearn.classification.metrics.divergence import ZRF, JSDivergence
from lightning_unlearn.classification.metrics.gap import AverageGap
from lightning_unlearn.classification.metrics.mia import MIAEfficacy
from lightning_unlearn.classification.metrics.runtime import RTE
from lightning_unlearn.classification.metrics.ulira import ULiRA

ROWS, MODELS = 41, 8


def measure(rank: int, processes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(MODELS, ROWS, 3, generator=generator)
    labels = torch.randint(3, (ROWS,), generator=generator)
    unlearned = torch.rand(MODELS, ROWS, generator=generator).argsort(0) < MODELS // 2
    metrics: dict[str, Any] = {"ra": RA(), "ua": UA(), "js": JSDivergence(), "zrf": ZRF(), "ulira": ULiRA(MODELS)}
    for rows in torch.arange(rank, ROWS, processes).split(7):
        for name in ("ra", "ua"):
            metrics[name].update(logits[0, rows], labels[rows])
        for name in ("js", "zrf"):
            metrics[name].update(logits[0, rows], logits[1, rows])
        metrics["ulira"].update(logits[:, rows], labels[rows], unlearned[:, rows])
    metrics["gap"] = AverageGap()
    if rank == 0:  # the other process has seen no row
        metrics["gap"].update({"ua": 3.0}, {"ua": 5.0})
    metrics["rte"] = RTE()
    metrics["rte"].update(3.0 / (1 + rank), steps=4, samples=ROWS if processes == 1 else ROWS // 2 + 1 - rank)
    try:
        import sklearn  # noqa: F401
    except ImportError:
        pass
    else:
        metrics["mia"] = MIAEfficacy(shadow="stratified", max_shadow=10)
        for model, role in enumerate(("member", "nonmember")):
            rows = torch.arange(rank, ROWS, processes)
            metrics["mia"].update(logits[model, rows], labels[rows], role)
        if rank == processes - 1:
            metrics["mia"].update(logits[2], labels, "forget")
    return {name: metric.compute() for name, metric in metrics.items()}


@pytest.mark.distributed
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [__file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-6000:]
    one = measure(0, 1)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert two.keys() == one.keys()
        for name in one:
            torch.testing.assert_close(torch.tensor(flat(two[name])), torch.tensor(flat(one[name])), equal_nan=True)


def flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple) else [float(value)]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.save(measure(dist.get_rank(), 2), Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
