"""Relative cost of UGradSL against ascent and fine-tuning, of batched per-row gradients, and of SAM."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    SAM,
    FineTune,
    FisherForgetting,
    GradDiff,
    GradientAscent,
    LitClassifier,
    UGradSL,
    classifier_nll,
)

ROWS, BATCH = 2048, 64


def rows(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(ROWS, 1, 14, 14, generator=generator), torch.randint(10, (ROWS,), generator=generator)
    return TensorDataset(images, labels)


def module() -> LitClassifier:
    torch.manual_seed(0)
    return LitClassifier("lightning_unlearn.benchmarks.models.ResNet8", lr=0.01)


def trainer(*callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=1, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def ugradsl() -> None:
    """One epoch: each forget row once, with as many retain rows."""
    loaders = {"forget": DataLoader(rows(1), BATCH), "retain": DataLoader(rows(2), BATCH)}
    trainer(UGradSL()).fit(module(), loaders)


def ascent_and_fine_tuning() -> None:
    """The same rows in as many updates of as many rows."""
    model = module()
    trainer(GradientAscent(score=classifier_nll)).fit(model, {"forget": DataLoader(rows(1), 2 * BATCH)})
    trainer(FineTune()).fit(model, {"retain": DataLoader(rows(2), 2 * BATCH)})


def grad_diff(*beside: L.Callback) -> Callable[[], None]:
    """One epoch of as many forget as retain rows."""
    loaders = {"forget": DataLoader(rows(1), BATCH), "retain": DataLoader(rows(2), BATCH)}
    return lambda: trainer(GradDiff(score=classifier_nll), *beside).fit(module(), loaders)


def fisher(rows_at_once: int) -> Callable[[], None]:
    """Squared gradients of each row and class."""
    part = torch.utils.data.Subset(rows(2), range(64))
    method = FisherForgetting(rows_at_once=rows_at_once)
    return lambda: method.edit(module(), DataLoader(part, 32), DataLoader(part, 32))


def ratio(one: Callable[[], None], other: Callable[[], None], repeats: int) -> float:
    """Ratio of the median times of two functions, measured alternately."""
    taken: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats + 1):
        for run, seconds in zip((one, other), taken, strict=True):
            start = time.process_time()
            run()
            if i:  # the first run warms up
                seconds.append(time.process_time() - start)
    return statistics.median(taken[0]) / statistics.median(taken[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.classifier", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cost = ratio(ugradsl, ascent_and_fine_tuning, args.repeats)
    print(f"an epoch of UGradSL / ascent and fine-tuning on the same rows: {cost:.2f}")
    print(f"an epoch of GradDiff with SAM / without: {ratio(grad_diff(SAM()), grad_diff(), args.repeats):.2f}")
    print(f"Fisher row by row / 32 rows at once: {ratio(fisher(1), fisher(32), args.repeats):.2f}")


if __name__ == "__main__":
    main()
