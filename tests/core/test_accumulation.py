"""An update takes the mean over the batches that it accumulates, also where an epoch cuts a window short."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_unlearn import GradDiff, SimNPO, classifier_nll
from tests.helpers import Recorder, trainer
from tests.user_module import LitNet, loaders, pairs, seeded

BATCHES, WINDOW = 5, 3  # two windows: three batches, and two


class Stream(IterableDataset):
    def __init__(self, seed: int) -> None:
        self.rows = pairs(4 * BATCHES, seed).dataset

    def __iter__(self) -> Any:
        return iter(self.rows)  # type: ignore[call-overload]


def gradients(data: Any, *callbacks: Any, **options: Any) -> list[Tensor]:
    """The gradient of each update, in a run that moves no weight."""

    def gradient(_: Any, module: LitNet, *__: Any) -> Tensor:
        return torch.cat([p.grad.flatten().clone() for p in module.parameters()])  # type: ignore[union-attr]

    seen = Recorder(on_before_optimizer_step=gradient)
    trainer(SimNPO(score=classifier_nll), seen, *callbacks, **options).fit(seeded(lr=0.0), data)
    return seen.values


def of_streams() -> dict[str, DataLoader]:
    return {role: DataLoader(Stream(seed), batch_size=4) for role, seed in (("forget", 1), ("retain", 2))}


def of_rows() -> dict[str, DataLoader]:
    return loaders(4 * BATCHES, 4 * BATCHES)


@pytest.mark.parametrize("data", [of_rows, of_streams])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_short_window_takes_the_mean_of_its_batches(data: Any, scheduled: bool) -> None:
    each = torch.stack(gradients(data()))
    callbacks = [GradientAccumulationScheduler({0: WINDOW})] if scheduled else []
    windows = gradients(data(), *callbacks, **({} if scheduled else {"accumulate_grad_batches": WINDOW}))
    assert len(windows) == 2
    for window, batches in zip(windows, each.split(WINDOW), strict=True):
        torch.testing.assert_close(window, batches.mean(0))


def test_limited_batches_end_a_window_too() -> None:
    each = torch.stack(gradients(of_rows()))
    (window,) = gradients(of_rows(), accumulate_grad_batches=WINDOW, limit_train_batches=2)
    torch.testing.assert_close(window, each[:2].mean(0))


def test_full_windows_are_those_of_a_plain_training_step() -> None:
    class Plain(LitNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return classifier_nll(self, batch["retain"]).mean() - classifier_nll(self, batch["forget"]).mean()

    ends: list[Tensor] = []
    for callbacks in ([], [GradDiff(score=classifier_nll)]):
        module = seeded(Plain)
        trainer(*callbacks, accumulate_grad_batches=2, max_epochs=2).fit(module, loaders(16, 16))
        ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*ends)
