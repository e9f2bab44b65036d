"""Relearning attack: fine-tuning on forget rows, and the time until they are known again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_unlearn.core.checks import above, at_least, finite
from lightning_unlearn.core.lightning import LightningModule, isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.relearning import RelearningCurve, attacked_copy, fine_tune
from lightning_unlearn.core.rows import drawn_rows, row_loader
from lightning_unlearn.core.scores import Batch, Score, classifier_nll
from lightning_unlearn.core.seeds import SeedMetric
from lightning_unlearn.core.transfer import transferred

__all__ = [
    "AnamnesisIndex",
    "Relearned",
    "RelearningAttack",
    "RelearningCurve",
    "anamnesis_index",
    "relearn_time",
]


class RelearningAttack:
    """Fine-tunes a copy of a model on forget rows, and measures how fast it learns them again.

    The attacked model, its modes and the global random state do not change. Learning new rows takes time for any model:
    only the difference to a control model that never saw the rows, such as the retrained one, is a sign of what the
    unlearned model still knew.

    Args:
        optimizer: Makes the optimizer of the copy's trainable weights, such as ``partial(torch.optim.AdamW, lr=1e-5)``.
        max_steps: Optimizer updates.
        every_n_steps: Measure after every so many updates, and after the last.
        rows: Number of forget rows to train on, drawn without replacement; ``None`` takes all.
        metric: ``(module) -> number``, called with the copy in evaluation mode, such as the accuracy on forget rows
            that are not trained on. By default the mean negative log-likelihood of all forget rows, in nats.
        stop_at: End where the metric is at most this.
        score: Reads per-example negative log-likelihoods off the module; their mean is the loss.
        seed: Seed of the drawn rows, of shuffling loaders and of dropout.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from functools import partial
        >>> from lightning_unlearn import LitClassifier
        >>> rows = [(torch.eye(4), torch.tensor([0, 1, 0, 1]))]
        >>> linear = "torch.nn.Linear", {"in_features": 4, "out_features": 2}
        >>> unlearned, retrained = LitClassifier(*linear), LitClassifier(*linear)
        >>> attack = RelearningAttack(partial(torch.optim.SGD, lr=0.5), max_steps=20, every_n_steps=10)
        >>> curve = attack(unlearned, rows, control=retrained)
        >>> curve.steps, curve.values[-1] < curve.values[0], curve.control.values[-1] < curve.control.values[0]
        ([0, 10, 20], True, True)

    References:
        Golatkar et al., *Eternal Sunshine of the Spotless Net*, arXiv:1911.04933.
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, arXiv:2502.05374.
    """

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        max_steps: int = 500,
        every_n_steps: int = 1,
        rows: int | None = None,
        metric: Callable[[LightningModule], float] | None = None,
        stop_at: float | None = None,
        score: Score = classifier_nll,
        seed: int = 0,
    ) -> None:
        self.optimizer, self.max_steps = optimizer, at_least("max_steps", max_steps, 1)
        self.every_n_steps = at_least("every_n_steps", every_n_steps, 1)
        self.rows = None if rows is None else at_least("rows", rows, 1)
        self.metric, self.stop_at, self.score, self.seed = metric, stop_at, score, seed

    def __call__(
        self,
        module: LightningModule,
        loader: Iterable[Batch],
        control: LightningModule | None = None,
        original: LightningModule | None = None,
    ) -> RelearningCurve:
        """Attack a model, and the control and the original model likewise.

        Args:
            module: The unlearned model.
            loader: Batches of forget rows, read again for each epoch and each measurement.
            control: A model that never saw these rows, such as the retrained one.
            original: The model before unlearning.

        Returns:
            The curve of the unlearned model, with those of the other two.

        Raises:
            ValueError: If the loader is empty, a loss is not finite, or ``rows`` is given for a loader whose rows can't
                be chosen.
        """
        others = [
            None if other is None else RelearningCurve(*self._attack(other, loader)) for other in (control, original)
        ]
        return RelearningCurve(*self._attack(module, loader), *others)

    def _trained_rows(self, loader: Iterable[Batch]) -> Iterable[Batch]:
        if self.rows is None:
            return loader
        whole = row_loader({"forget": loader}, "forget", everywhere=False)
        if whole is None or whole.streamed:
            raise ValueError("rows chooses from a map-style dataset. Pass a DataLoader of one, or leave rows out.")
        return whole.select(drawn_rows(whole, self.rows, self.seed))

    def _attack(self, module: LightningModule, loader: Iterable[Batch]) -> tuple[list[int], list[float]]:
        trained = self._trained_rows(loader)
        steps: list[int] = []
        values: list[float] = []
        with attacked_copy(module, self.seed) as model:

            def measured(step: int) -> bool:
                if step % self.every_n_steps and step != self.max_steps:
                    return False
                steps.append(step)
                values.append(self._measure(model, loader))
                return self._ends(step, values[-1])

            fine_tune(
                model,
                trained,
                self.optimizer([p for p in model.parameters() if p.requires_grad]),
                lambda copied, batch: self.score(copied, batch).mean(),
                measured,
            )
        return steps, values

    def _ends(self, step: int, value: float) -> bool:
        return step == self.max_steps or (self.stop_at is not None and value <= self.stop_at)

    def _measure(self, model: LightningModule, loader: Iterable[Batch]) -> float:
        # A loader that is read takes random numbers: measuring more often must not change what is trained.
        with isolate_rng(), evaluating(model):
            return self._mean_nll(model, loader) if self.metric is None else float(self.metric(model))

    def _mean_nll(self, model: LightningModule, loader: Iterable[Batch]) -> float:
        parts: list[Tensor] = [self.score(model, transferred(model, b)) for b in loader]
        if not parts:
            raise ValueError("The loader gave no batch, so there is nothing to relearn. Give it the forget rows.")
        losses = torch.cat(parts)
        finite("losses", losses)
        return float(losses.mean())


class Relearned(NamedTuple):
    """Relearn time of a model.

    Args:
        steps: Optimizer updates until the target; 0 where the model knew the rows from the start.
        loss: The metric at that measurement, or at the last.
        reached: Whether the target was reached; if not, the relearn time is more than ``steps``.
    """

    steps: int
    loss: float
    reached: bool


def relearn_time(curve: RelearningCurve, target: float) -> Relearned:
    r"""Updates of fine-tuning on the forget rows until their loss is that of the original model again.

    $$\min\{s : \ell(\theta_u^{(s)}, D_f) \le (1 + \eta)\, \ell(\theta_o, D_f)\}$$

    Args:
        curve: Curve of a [`RelearningAttack`][lightning_unlearn.RelearningAttack]; usually of SGD with a tenth of the
            learning rate of the original training.
        target: $(1 + \eta)\, \ell(\theta_o, D_f)$, with the mean loss of the original model; $\eta$ is usually 0.05.

    Returns:
        The steps, and whether the target was reached. Good is the retrained model's number; a smaller one shows that
        the rows were hidden rather than forgotten.

    Raises:
        ValueError: If the target is not positive.

    Example:
        >>> relearn_time(RelearningCurve([0, 5, 10], [0.9, 0.4, 0.1]), target=0.5)
        Relearned(steps=5, loss=0.4, reached=True)

    References:
        Golatkar et al., *Eternal Sunshine of the Spotless Net*, arXiv:1911.04933.
        Tarun et al., *Fast Yet Effective Machine Unlearning*, arXiv:2111.08947.
    """
    above("target", target, 0)
    for step, value in zip(curve.steps, curve.values, strict=True):
        if value <= target:
            return Relearned(step, value, True)
    return Relearned(curve.steps[-1], curve.values[-1], False)


def anamnesis_index(curve: RelearningCurve, target: float) -> float:
    r"""Anamnesis index, $\mathrm{AIN} = rt(\theta_u) / rt(\theta_r)$, a ratio of relearn times.

    Args:
        curve: Curve of the unlearned model, with the retrained model as control.
        target: The loss that ends both times, see [`relearn_time`][lightning_unlearn.relearn_time].

    Returns:
        At least 0; 1, equal to the retrained model, is good. Well below 1 the rows were hidden rather than forgotten.

    Raises:
        ValueError: If there is no control, a model did not reach the target, or the control needed no step.

    Example:
        >>> retrained = RelearningCurve([0, 10, 20], [0.9, 0.6, 0.3])
        >>> anamnesis_index(RelearningCurve([0, 5], [0.9, 0.3], retrained), target=0.5)
        0.25

    References:
        Chundawat et al., *Zero-Shot Machine Unlearning*, arXiv:2201.05629.
    """
    if curve.control is None:
        raise ValueError("The curve has no control. Run RelearningAttack with control=, the retrained model.")
    times = {"unlearned": relearn_time(curve, target), "retrained": relearn_time(curve.control, target)}
    for name, time in times.items():
        if not time.reached:
            raise ValueError(
                f"The {name} model did not relearn within {time.steps} steps, so its relearn time is unknown. Raise "
                "max_steps or the learning rate."
            )
    hint = "a retrained model that needs none knows the forget rows already: choose a smaller target"
    return times["unlearned"].steps / at_least("steps of the retrained model", times["retrained"].steps, 1, hint)


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
        >>> retrained = RelearningCurve([0, 10, 20], [0.9, 0.6, 0.3])
        >>> index.update(RelearningCurve([0, 5], [0.9, 0.3], retrained), target=0.5)
        >>> index.compute().mean
        0.25

    References:
        Chundawat et al., *Zero-Shot Machine Unlearning*, arXiv:2201.05629.
    """

    higher_is_better: bool | None = None

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(level, **kwargs)

    def update(self, curve: RelearningCurve, target: float) -> None:
        """Count one seed: the curve of the unlearned model, with the retrained model as control."""
        self.add(anamnesis_index(curve, target))
