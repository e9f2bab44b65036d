"""Base class of objectives on classifiers: logits of rows, batch normalization, epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_unlearn.core.callback import Reference, UnlearnCallback
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_unlearn.core.pairing import PairLoader
from lightning_unlearn.core.reading import Reading, join
from lightning_unlearn.core.scores import Batch, Predictions, Score, prediction_score

__all__ = ["BatchNormMode", "ClassifierObjective"]

BatchNormMode = Literal["joint", "frozen", "train"]


class ClassifierObjective(UnlearnCallback):
    """An objective that reads the logits of each row.

    Batch normalization can forget by itself: a pass over one class moves the running statistics to that class, and the
    model fails on it, and on others, without a single weight changed. ``bn_mode`` chooses the rows that the statistics
    are taken over.

    Args:
        bn_mode: ``"joint"``: forget and retain rows go through the model as one batch, with common statistics;
            ``"frozen"``: batch normalization stays in evaluation mode, which needs learning rates ten times smaller;
            ``"train"``: rows of each role have their own pass and statistics, as in most released codes. Without batch
            normalization all three are the same.
        score: Reads predictions off the module.
        reference: How the starting model is kept, where the method needs it.

    Raises:
        ValueError: If the mode is unknown or the score gives no logits.
        MisconfigurationException: If rows of the two roles can't be stacked, where they share their statistics.
    """

    driver: ClassVar[str | None] = None
    """The role that one epoch passes over once, where the paper defines the epoch."""

    def __init__(self, bn_mode: BatchNormMode, score: Score, reference: Reference = "auto") -> None:
        super().__init__(prediction_score(type(self).__name__, score, "reads the logits of each row"), reference)
        self.bn_mode = one_of("bn_mode", bn_mode, BatchNormMode)
        self._batch_norms: list[_BatchNorm] = []
        self._thawed: list[_BatchNorm] = []

    def read(self, module: LightningModule, batches: Sequence[Batch], logits: bool = False) -> list[Reading]:
        """Read several roles off the module, with the statistics of ``bn_mode``."""
        if self._joint_statistics and len(batches) > 1 and join(batches) is None:
            raise MisconfigurationException(
                "bn_mode='joint' takes the statistics of batch normalization over forget and retain rows together, but "
                "they can't be stacked. Let both have rows of one shape and structure, or use bn_mode='frozen'."
            )
        return super().read(module, batches, logits)

    def predictions(self, module: LightningModule, batch: dict[str, Batch], roles: Sequence[str]) -> list[Predictions]:
        """Logits and labels of the rows of some roles.

        Args:
            module: The user's module.
            batch: The rows of each role.
            roles: Roles to return. With joint statistics of batch normalization, the rows of both roles run.
        """
        run = [r for r in ("retain", "forget") if r in roles or (self._joint_statistics and r in self.needs.roles)]
        readings = dict(zip(run, self.read(module, [batch[r] for r in run], logits=True), strict=True))
        predictions = [readings[role].predictions for role in roles]
        return [p for p in predictions if p is not None]

    def row_mean(self, values: Tensor) -> Tensor:
        """Mean over the rows of all processes: averaging this over ranks gives the mean of the joined batch."""
        return self.token_mean(values, values.new_ones(len(values)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find batch normalization, make the reference, and compare the epoch with the published one."""
        self._batch_norms = [child for child in pl_module.modules() if isinstance(child, _BatchNorm)]
        super().on_train_start(trainer, pl_module)
        self._joinable = not self._batch_norms or self.bn_mode != "train"
        self._check_epoch(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze statistics again: the user may have called ``train()``."""
        if self.bn_mode == "frozen":
            self._thawed += [norm for norm in self._batch_norms if norm.training]
            for norm in self._batch_norms:
                norm.eval()

    @property
    def _joint_statistics(self) -> bool:
        return self.bn_mode == "joint" and bool(self._batch_norms)

    def _check_epoch(self, trainer: Trainer) -> None:
        loader = trainer.train_dataloader
        if self.driver is None or trainer.limit_train_batches != 1.0:
            return
        if isinstance(loader, PairLoader):
            as_published = loader.sampler.driver == self.driver  # type: ignore[attr-defined]
        elif isinstance(loader, dict) and hasattr(loader.get(self.driver), "__len__"):
            as_published = len(loader[self.driver]) == trainer.num_training_batches
        else:
            return
        if not as_published:
            rank_zero_warn(
                f"An epoch of {type(self).__name__} is one pass over the {self.driver} rows, but one of this run, with "
                f"{trainer.num_training_batches} batches, is not. ForgetRetainDataModule(epoch={self.driver!r}) makes "
                "it the published one."
            )

    def _give_back(self, module: LightningModule) -> None:
        super()._give_back(module)
        for norm in self._thawed:
            norm.train()
        self._thawed = []


def batch_accuracy(predictions: Predictions) -> Tensor:
    """Share of the rows of a batch whose likeliest class is the label."""
    return (predictions.logits.argmax(1) == predictions.labels).float().mean()
