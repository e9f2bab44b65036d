"""Curves and the training loop of relearning attacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_unlearn.core.batch_norm import lone_rows_frozen
from lightning_unlearn.core.lightning import LightningModule, isolate_rng
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.functional.robustness import recovery, recovery_area

__all__ = ["RelearningCurve", "attacked_copy", "fine_tune"]


@dataclass(frozen=True)
class RelearningCurve:
    """A metric of the attacked model against the steps of the attack.

    Args:
        steps: Optimizer updates before each measurement, the first 0.
        values: The metric at each measurement.
        control: The curve of the control model, where there is one.
        original: The curve of the model before unlearning, where there is one.
    """

    steps: list[int]
    values: list[float]
    control: RelearningCurve | None = None
    original: RelearningCurve | None = None

    def recovery(self) -> list[float | None]:
        """Recovered share of the knowledge at each step.

        See [`recovery`][lightning_unlearn.functional.robustness.recovery].

        Raises:
            ValueError: If control or original is missing, or was measured at other steps.
        """
        return recovery(self.values, *self._anchors())

    def recovery_area(self) -> float | None:
        """Recovered share over the whole attack, the ratio of areas AURC.

        Raises:
            ValueError: If control or original is missing, or was measured at other steps.

        Example:
            >>> steps = [0, 5, 10, 20]
            >>> control = RelearningCurve(steps, [0.06, 0.10, 0.15, 0.20])
            >>> original = RelearningCurve(steps, [0.90, 0.90, 0.90, 0.90])
            >>> round(RelearningCurve(steps, [0.05, 0.30, 0.50, 0.60], control, original).recovery_area(), 4)
            0.3678
        """
        return recovery_area(self.steps, self.values, *self._anchors())

    def _anchors(self) -> tuple[list[float], list[float]]:
        if self.control is None or self.original is None:
            raise ValueError("Recovery lies between two models. Attack the control and the original model as well.")
        if not self.steps == self.control.steps == self.original.steps:
            raise ValueError("The three models were measured at different steps. Attack all of them alike.")
        return self.control.values, self.original.values


@contextmanager
def attacked_copy(module: LightningModule, seed: int) -> Iterator[LightningModule]:
    """A copy of a model that can be trained; the model and the global random state do not change.

    Args:
        module: The model.
        seed: Seed of what happens in the body.
    """
    with ExitStack() as stack:
        for context in (isolate_rng(), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        torch.manual_seed(seed)
        model = copy.deepcopy(module)
        stack.enter_context(lone_rows_frozen(model))
        yield model


def fine_tune(
    model: LightningModule,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    loss: Callable[[LightningModule, Batch], Tensor],
    ends: Callable[[int], bool],
    rates: Callable[[int], float] | None = None,
    clip: float | None = None,
    dropout: bool = True,
) -> None:
    """Train a model in place, the loop of every relearning attack.

    Args:
        model: A copy of the attacked model.
        batches: The taught rows, read again for each epoch.
        optimizer: Of the weights that may move.
        loss: ``(model, batch) -> number``, with the batch on the model's device.
        ends: ``(step) -> bool``, called before the first update and after each one; measures, and says when to end.
        rates: ``(step) -> factor`` of the learning rate, of the steps counted from 0.
        clip: Largest norm of the gradient.
        dropout: Whether the model trains in training mode.

    Raises:
        ValueError: If an epoch has no batch.
    """
    full = [group["lr"] for group in optimizer.param_groups]
    step, before = 0, -1
    done = ends(0)
    while not done:
        if step == before:
            raise ValueError("The loader gave no batch, so there is nothing to relearn. Give it the forget rows.")
        before = step
        for batch in batches:
            model.train(dropout)
            if rates is not None:
                for group, rate in zip(optimizer.param_groups, full, strict=True):
                    group["lr"] = rate * rates(step)
            optimizer.zero_grad()
            loss(model, transferred(model, batch)).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
            optimizer.step()
            step += 1
            if done := ends(step):
                break
