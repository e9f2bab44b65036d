"""Base class of classifier objectives: row logits, batch normalization modes and checks of the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.core.batch_norm import has_batch_statistics
from lightning_unlearn.core.callback import Reference, UnlearnCallback
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.distributed import sum_over_ranks
from lightning_unlearn.core.lightning import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    isolate_rng,
    rank_zero_warn,
)
from lightning_unlearn.core.modes import evaluating, undisturbed
from lightning_unlearn.core.pairing import PairLoader
from lightning_unlearn.core.reading import Reading, join, likelihood
from lightning_unlearn.core.rows import RunRows, on_device, row_loader
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, prediction_score

__all__ = ["BatchNormMode", "ClassifierObjective"]

BatchNormMode = Literal["joint", "frozen", "train"]

_LATEST = 4  # number of latest batches whose accuracy is compared with that of the first
_COLLAPSE = 0.25


class ClassifierObjective(UnlearnCallback):
    """Base class of objectives that read the logits of each row.

    Batch normalization can cause forgetting by itself: a pass over one class moves the running statistics towards that
    class, and the model fails on it, and on others, without a single changed weight. ``bn_mode`` chooses the rows over
    which the statistics are computed.

    Args:
        bn_mode: ``"joint"``: forget and retain rows go through the model as one batch, with common statistics;
            ``"frozen"``: batch normalization stays in evaluation mode, which needs learning rates ten times smaller;
            ``"train"``: each role has its own pass and statistics, as in most released codes. Without batch
            normalization all three are the same.
        score: Reads predictions from the module.
        reference: How the original model is kept, if the method needs it.

    Raises:
        ValueError: If the mode is unknown or the score gives no logits.
        MisconfigurationException: If rows of the two roles share their statistics but can't be stacked.
    """

    driver: ClassVar[str | None] = None
    """The role that one epoch passes over once, where the paper defines the epoch."""

    reads_logits: ClassVar[bool] = True
    """Whether the method needs a score that gives logits."""

    def __init__(self, bn_mode: BatchNormMode, score: Score, reference: Reference = "auto") -> None:
        if self.reads_logits:
            score = prediction_score(type(self).__name__, score, "reads the logits of each row")
        super().__init__(score, reference)
        self.bn_mode = one_of("bn_mode", bn_mode, BatchNormMode)
        self._batch_norms: list[nn.Module] = []
        self._thawed: list[nn.Module] = []
        self._lost = False
        self._retained: list[Tensor] = []
        """Accuracies on retain rows: of the first batch, and of the latest ones."""

    def read(self, module: LightningModule, batches: Sequence[Batch], logits: bool = False) -> list[Reading]:
        """Read several roles from the module, with the statistics of ``bn_mode``."""
        if self._joint_statistics and len(batches) > 1 and join(batches) is None:
            raise MisconfigurationException(
                "bn_mode='joint' takes the statistics of batch normalization over forget and retain rows together, but "
                "they can't be stacked. Let both have rows of one shape and structure, tensors alone and no names of "
                "files, or use bn_mode='frozen'."
            )
        return super().read(module, batches, logits)

    def predictions(self, module: LightningModule, batch: dict[str, Batch], roles: Sequence[str]) -> list[Predictions]:
        """Logits and labels of the rows of some roles.

        Args:
            module: The user's module.
            batch: The rows of each role.
            roles: Roles to return. With joint batch normalization statistics, the model runs on the rows of both roles.
        """
        run = [r for r in ("retain", "forget") if r in roles or (self._joint_statistics and r in self.needs.roles)]
        readings = dict(zip(run, self.read(module, [batch[r] for r in run], logits=True), strict=True))
        predictions = [p for role in roles if (p := readings[role].predictions) is not None]
        if "retain" in roles:
            self._watch(batch_accuracy(predictions[list(roles).index("retain")]))
        return predictions

    def row_mean(self, values: Tensor) -> Tensor:
        """Mean over the rows of all processes, scaled so that its mean over ranks is that of the joined batch."""
        return self.token_mean(values, values.new_ones(len(values)))

    def share(self, values: Tensor, rows: int) -> Tensor:
        """Contribution of these values to the mean over ``rows`` rows on all processes."""
        return self.token_mean(values, values.new_tensor(float(rows)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find batch normalization, make the reference, and compare the epoch with the published one."""
        self._retained, self._lost = [], False
        self._batch_norms = [child for child in pl_module.modules() if has_batch_statistics(child)]
        super().on_train_start(trainer, pl_module)
        self._joinable = not self._batch_norms or self.bn_mode != "train"
        if self.driver is not None:
            check_epoch(type(self).__name__, self.driver, trainer)

    def _check_rows(self, trainer: Trainer, module: LightningModule) -> None:
        """Read a batch of each role, so that an error occurs before weights are reset."""
        for role in self.needs.roles:
            loader = row_loader(trainer.train_dataloader, role)
            if loader is not None:
                with undisturbed(module), trainer.precision_plugin.forward_context():
                    likelihood(self.score, module, on_device(trainer, next(iter(loader))))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check for a collapse on retain rows; freeze statistics again, as the user may have called ``train()``."""
        self._check_retained(trainer)
        if self.bn_mode == "frozen":
            self._thawed += [norm for norm in self._batch_norms if norm.training]
            for norm in self._batch_norms:
                norm.eval()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check whether the accuracy on retain rows has collapsed."""
        super().on_train_end(trainer, pl_module)
        self._check_retained(trainer)

    def _watch(self, accuracy: Tensor) -> None:
        self._retained.append(accuracy.detach())
        if len(self._retained) > 1 + _LATEST:
            del self._retained[1]

    def _check_retained(self, trainer: Trainer) -> None:
        """Warn once if the accuracy on retain rows has collapsed since the first batch."""
        if len(self._retained) < 1 + _LATEST or self._lost:
            return
        first, now = self._retained[0].item(), torch.stack(self._retained[1:]).mean().item()
        if first - now <= _COLLAPSE:
            return
        self._lost = True
        rates = ", ".join(f"{group['lr']:g}" for optimizer in trainer.optimizers for group in optimizer.param_groups)
        clipping = trainer.gradient_clip_val
        rank_zero_warn(
            f"{type(self).__name__} destroys the model: accuracy on the retain rows of a batch has fallen from "
            f"{100 * first:.0f} % in the first one to {100 * now:.0f} %. The learning rate is {rates}: unlearning "
            "usually needs a tenth, or less, of the rate of the training. Lower it, "
            + ("" if clipping else "set gradient_clip_val, ")
            + "give the retain rows more weight, or train for fewer epochs."
        )

    @property
    def _joint_statistics(self) -> bool:
        return self.bn_mode == "joint" and bool(self._batch_norms)

    def _give_back(self, module: LightningModule) -> None:
        super()._give_back(module)
        for norm in self._thawed:
            norm.train()
        self._thawed = []


def check_epoch(method: str, driver: str, trainer: Trainer) -> None:
    """Warn if an epoch of the run is not one pass over the rows of a role."""
    loader = trainer.train_dataloader
    if trainer.limit_train_batches != 1.0:
        return
    if isinstance(loader, PairLoader):
        as_published = loader.sampler.driver == driver  # type: ignore[attr-defined]
    elif isinstance(loader, dict) and hasattr(loader.get(driver), "__len__"):
        as_published = len(loader[driver]) == trainer.num_training_batches
    else:
        return
    if not as_published:
        rank_zero_warn(
            f"An epoch of {method} is one pass over the {driver} rows, but one of this run, with "
            f"{trainer.num_training_batches} batches, is not. ForgetRetainDataModule(epoch={driver!r}) makes it the "
            "published one."
        )


def check_clipping(method: str, trainer: Trainer) -> None:
    """Warn if nothing bounds the steps of gradient ascent."""
    if not trainer.gradient_clip_val:
        rank_zero_warn(
            f"The loss of {method} has no lower bound, and the gradients of this run are not clipped: a few large "
            "steps can destroy the model. Set gradient_clip_val=10.0 in the Trainer, and a learning rate of a tenth of "
            "that of the training or less."
        )


def forget_accuracy(method: str, trainer: Trainer, module: LightningModule, score: Score) -> float:
    """Accuracy on all forget rows, in evaluation mode, as a fraction.

    Raises:
        MisconfigurationException: If forget rows can't be read one by one.
    """
    counts = torch.zeros(2, dtype=torch.float64)
    assert isinstance(score, PredictionScore)
    with isolate_rng(), evaluating(module), trainer.precision_plugin.forward_context():
        for batch, counted in RunRows.of_role(trainer, "forget", method):
            predictions = score.predictions(module, batch)
            right = predictions.logits.argmax(1) == predictions.classes()
            counts += counted * torch.tensor([right.sum().item(), len(right)], dtype=torch.float64)
    sum_over_ranks(counts, module.device)
    return (counts[0] / counts[1]).item()


def batch_accuracy(predictions: Predictions) -> Tensor:
    """Accuracy on the rows of a batch, as a fraction."""
    return (predictions.logits.argmax(1) == predictions.classes()).float().mean()


def check_one_label(method: str, does: str, predictions: Predictions) -> None:
    """Refuse rows with several labels.

    Args:
        method: Name of the method.
        does: What it does, for which a row has one label, such as ``"trains noise of a class"``.
        predictions: Logits and labels of rows.

    Raises:
        MisconfigurationException: If there are more or fewer labels than rows.
    """
    if len(predictions.rows) != predictions.size:
        raise MisconfigurationException(
            f"{method} {does}, but these {predictions.size} rows have {len(predictions.rows)} labels. Take UGradSL, "
            "SCRUB or RandomLabels for several labels a row."
        )
