"""How soon a model knows again what it forgot."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_unlearn.classification.metrics.rows import SeedMetric
from lightning_unlearn.core.checks import finite
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch, Score, classifier_nll

__all__ = ["AnamnesisIndex", "Relearned", "anamnesis_index", "relearn_time"]


class Relearned(NamedTuple):
    """The outcome of relearning.

    Args:
        steps: Optimizer updates made; 0 where the model knew the rows all along.
        loss: Mean negative log-likelihood on the forget rows at the end, in nats.
        reached: Whether that is at most the target; if not, the relearn time is more than ``steps``.
    """

    steps: int
    loss: float
    reached: bool


def relearn_time(
    module: LightningModule,
    loader: Iterable[Batch],
    original_loss: float,
    *,
    lr: float,
    eta: float = 0.05,
    momentum: float = 0.9,
    max_steps: int = 500,
    every_n_steps: int = 1,
    score: Score = classifier_nll,
    seed: int = 0,
) -> Relearned:
    r"""Updates of fine-tuning on the forget set until its loss is that of the original model again.

    $$\min\{s : \ell(\theta_u^{(s)}, D_f) \le (1 + \eta)\, \ell(\theta_o, D_f)\}$$

    A copy is trained; the module itself, its modes and the global random state are left alone. The loss is measured
    over the whole loader in evaluation mode.

    Args:
        module: The unlearned model.
        loader: Batches of forget rows, read again for each epoch and each measurement.
        original_loss: Mean negative log-likelihood of the original model on the forget set, in nats.
        lr: Learning rate of SGD; usually a tenth of that of the original training.
        eta: Tolerance $\eta \ge 0$.
        momentum: Momentum of SGD, in [0, 1).
        max_steps: Give up after so many updates.
        every_n_steps: Measure after every so many updates; the result is a multiple of it.
        score: Reads per-example negative log-likelihoods off the module.
        seed: Seed of shuffling loaders and dropout.

    Returns:
        The steps and whether the target was reached. Good is the retrained model's number; a smaller one says that
        the rows were hidden rather than forgotten.

    Raises:
        ValueError: If an option is out of range, the loader is empty or the loss becomes non-finite.

    References:
        Golatkar et al., *Eternal Sunshine of the Spotless Net*, arXiv:1911.04933.
        Tarun et al., *Fast Yet Effective Machine Unlearning*, arXiv:2111.08947.
    """
    if not 0 < original_loss < float("inf"):
        raise ValueError(f"original_loss must be above 0 nats and finite, but got {original_loss}.")
    if lr <= 0 or eta < 0 or not 0 <= momentum < 1:
        raise ValueError(f"lr > 0, eta >= 0 and momentum in [0, 1) are needed, but got {lr}, {eta} and {momentum}.")
    if max_steps < 1 or every_n_steps < 1:
        raise ValueError(f"max_steps and every_n_steps must be at least 1, but got {max_steps} and {every_n_steps}.")
    target = (1 + eta) * original_loss
    with isolate_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        model = copy.deepcopy(module)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=momentum)
        steps, loss = 0, _mean_loss(model, loader, score)
        while loss > target and steps < max_steps:
            for batch in loader:
                model.train()
                optimizer.zero_grad()
                score(model, model.transfer_batch_to_device(batch, model.device, 0)).mean().backward()
                optimizer.step()
                steps += 1
                if steps % every_n_steps == 0 or steps == max_steps:
                    loss = _mean_loss(model, loader, score)
                    if loss <= target or steps == max_steps:
                        break
    return Relearned(steps, loss, loss <= target)


def anamnesis_index(unlearned: int, retrained: int) -> float:
    r"""Anamnesis index, $\mathrm{AIN} = rt(\theta_u) / rt(\theta_r)$, a ratio of relearn times.

    Args:
        unlearned: Relearn time of the unlearned model, in steps.
        retrained: That of the retrained model, at least 1.

    Returns:
        At least 0; 1, equal to the retrained model, is good. Well below 1 the rows were hidden rather than forgotten.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> anamnesis_index(5, 20)
        0.25

    References:
        Chundawat et al., *Zero-Shot Machine Unlearning*, arXiv:2201.05629.
    """
    if unlearned < 0 or retrained < 1:
        raise ValueError(
            f"Relearn times must be at least 0 steps and, of the retrained model, at least 1, but got {unlearned} and "
            f"{retrained}. A retrained model that needs none already knows the forget set: choose a smaller eta."
        )
    return unlearned / retrained


class AnamnesisIndex(SeedMetric):
    r"""Anamnesis index over seeds, the mean of $rt(\theta_u^s) / rt(\theta_r^s)$.

    At least 0; 1, equal to the retrained model, is good. With several processes, update each seed on one of them only.

    Args:
        level: Level of the confidence interval, in (0, 1).

    Raises:
        ValueError: If the level is out of range, or a model did not relearn.
        ImportError: If scipy is missing and there is more than one seed; raised by ``compute``.

    Example:
        >>> index = AnamnesisIndex()
        >>> index.update(Relearned(5, 0.1, True), Relearned(20, 0.1, True))
        >>> index.compute().mean
        0.25

    References:
        Chundawat et al., *Zero-Shot Machine Unlearning*, arXiv:2201.05629.
    """

    higher_is_better: bool | None = None

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(level, **kwargs)

    def update(self, unlearned: Relearned, retrained: Relearned) -> None:
        """Count one seed: what `relearn_time` returned for both models."""
        for name, outcome in (("unlearned", unlearned), ("retrained", retrained)):
            if not outcome.reached:
                raise ValueError(
                    f"The {name} model did not relearn within {outcome.steps} steps, so its relearn time is unknown. "
                    "Raise max_steps or lr."
                )
        self.add(anamnesis_index(unlearned.steps, retrained.steps))


def _mean_loss(model: LightningModule, loader: Iterable[Batch], score: Score) -> float:
    # A loader that is read takes random numbers: measuring more often must not change what is trained.
    with isolate_rng(), evaluating(model):
        parts: list[Tensor] = [score(model, model.transfer_batch_to_device(b, model.device, 0)) for b in loader]
    if not parts:
        raise ValueError("The loader gave no batch, so there is nothing to relearn. Give it the forget rows.")
    losses = torch.cat(parts)
    finite("losses", losses)
    return float(losses.mean())
