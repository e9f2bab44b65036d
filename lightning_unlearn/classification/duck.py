"""Forget rows go to the nearest centroid of another class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_unlearn.classification.features import find_head, watching
from lightning_unlearn.classification.objective import BatchNormMode, ClassifierObjective, batch_accuracy
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.distributed import mean_over_ranks
from lightning_unlearn.core.layers import find_layer
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.classification.duck import centroid_distance, nearest_wrong_centroid
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["DUCK"]


class DUCK(ClassifierObjective):
    r"""DUCK: the features of a forget row go to the nearest centroid of another class, retain rows keep their labels.

    $$\mathcal{L} = \frac{\lambda_1}{|B_f|} \sum_f \big[1 - \cos(h_\theta(x), \mu_{c(x)})\big] + \frac{\lambda_2}{|B_r|}
    \sum_r \ell(z_r / T, y_r), \quad c(x) = \arg\max_{c \ne y} \cos(h_{\theta_o}(x), \mu_c)$$

    The centroids $\mu_c$ are mean features of the retain rows of each class, read off the starting model before the
    first step by every process; and it is the starting model that says which is the nearest, so a row keeps its
    centroid. Training ends after the first epoch that leaves the accuracy on all forget rows, in evaluation mode, below
    ``target_accuracy``. Released code trains with Adam. The default weights are ours.

    Args:
        lambda1: Weight of the distance $\lambda_1 \ge 0$.
        lambda2: Weight of the retain rows $\lambda_2 \ge 0$.
        temperature: $T > 0$ of the retain rows.
        target_accuracy: In (0, 1]; a small one for a class, the accuracy on unseen rows for random ones. ``None`` lets
            the run go on.
        layer: Module whose output is the features, flattened: the end of its dotted name, or a regular expression found
            in one name only. By default the input of the last ``nn.Linear``.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        score: Reads predictions off the module.

    Raises:
        ValueError: If a number is out of range, or a forget row has no centroid of another class.
        MisconfigurationException: If the layer is not found or gives no vector a row, or rows can't be read one by one.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DUCK(target_accuracy=0.01)], logger=False, accelerator="cpu")

    References:
        Cotogni et al., *DUCK: Distance-based Unlearning via Centroid Kinematics*, arXiv:2312.02052.
        Triantafillou et al., *Are we making progress in unlearning? Findings from the first NeurIPS unlearning
        competition*, arXiv:2406.09073.
    """

    needs = Needs(snapshot=True)

    def __init__(
        self,
        lambda1: float = 1.0,
        lambda2: float = 1.0,
        temperature: float = 1.0,
        target_accuracy: float | None = 0.01,
        layer: str | None = None,
        bn_mode: BatchNormMode = "joint",
        score: Score = classifier_nll,
    ) -> None:
        super().__init__(bn_mode, score, reference="snapshot")
        for name, value in (("lambda1", lambda1), ("lambda2", lambda2)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, but got {value}.")
        if not temperature > 0:
            raise ValueError(f"temperature must be greater than 0, but got {temperature}.")
        if target_accuracy is not None and not 0 < target_accuracy <= 1:
            raise ValueError(
                f"target_accuracy must be in (0, 1], but got {target_accuracy}: the run ends once the forget rows are "
                "below it. Use None to go on."
            )
        self.lambda1, self.lambda2, self.temperature = lambda1, lambda2, temperature
        self.target_accuracy, self.layer = target_accuracy, layer
        self.centroids: Tensor | None = None
        """Mean features of each class of retain rows, shape ``(M, d)``, once a run has begun."""
        self.classes = torch.empty(0, dtype=torch.int64)
        """The class of each centroid, shape ``(M,)``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the layer."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._layer(pl_module)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the centroids."""
        if self.target_accuracy is not None:
            _rows(trainer, "forget")
        self._read_centroids(trainer, module)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue with the centroids of the checkpoint."""
        self.centroids, self.classes = state["centroids"].to(module.device), state["classes"].to(module.device)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Distance of the forget rows and cross-entropy of the retain rows."""
        assert self.centroids is not None
        assert self.snapshot is not None
        # The starting model goes first: exchanging weights would spoil a graph that already holds them.
        with self.snapshot.active(module):
            start, features = self._featured(module, batch["forget"])
        nearest = nearest_wrong_centroid(features, start.labels, self.centroids, self.classes)
        name, layer = self._layer(module)
        with watching(name, layer) as calls:
            retain, forget = self.predictions(module, batch, ("retain", "forget"))
        features = calls.last(calls.inputs if self.layer is None else calls.outputs, len(forget.labels))
        distance = self.row_mean(centroid_distance(features, self.centroids[nearest]))
        kept = self.row_mean(token_nll(retain.logits.float() / self.temperature, retain.labels))
        return {
            "loss": self.lambda1 * distance + self.lambda2 * kept,
            "forget_distance": distance,
            "retain": kept,
            "retain_accuracy": batch_accuracy(retain),
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop once the forget rows are forgotten."""
        if self.target_accuracy is None:
            return
        right = [p.logits.argmax(1) == p.labels for p, _ in self._read_rows(trainer, pl_module, "forget")]
        # Statistics of batch normalization, and so predictions, may differ between processes.
        accuracy = mean_over_ranks(torch.cat(right).float().mean())
        pl_module.log("unlearn/forget_accuracy", accuracy)
        if accuracy < self.target_accuracy:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The method's name, the starting model and the centroids."""
        centroids = self.centroids.cpu() if self.centroids is not None else None
        return {**super().state_dict(), "centroids": centroids, "classes": self.classes.cpu()}

    def _layer(self, module: nn.Module) -> tuple[str, nn.Module]:
        return find_head("DUCK", module, None) if self.layer is None else find_layer(module, self.layer)

    def _featured(self, module: LightningModule, rows: Batch) -> tuple[Predictions, Tensor]:
        """Predictions of some rows, and their features, shape ``(B, d)``."""
        assert isinstance(self.score, PredictionScore)
        with watching(*self._layer(module)) as calls:
            predictions = self.score.predictions(module, rows)
        return predictions, calls.last(calls.inputs if self.layer is None else calls.outputs, len(predictions.labels))

    def _read_rows(self, trainer: Trainer, module: LightningModule, role: str) -> Iterator[tuple[Predictions, Tensor]]:
        """The same for all rows of a role, in evaluation mode."""
        with isolate_rng(), evaluating(module), trainer.precision_plugin.forward_context():
            for batch in _rows(trainer, role):
                rows = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))
                yield self._featured(module, rows)

    def _read_centroids(self, trainer: Trainer, module: LightningModule) -> None:
        sums, counts = torch.zeros(0), torch.zeros(0)
        for predictions, features in self._read_rows(trainer, module, "retain"):
            if not len(counts):
                sums = torch.zeros(predictions.logits.shape[1], features.shape[1], dtype=torch.float64)
                counts = torch.zeros(len(sums), dtype=torch.float64)
            labels = predictions.labels.cpu()
            sums.index_add_(0, labels, features.cpu().double())
            counts += torch.bincount(labels, minlength=len(counts))
        self.classes = counts.nonzero().squeeze(1)
        self.centroids = (sums[self.classes] / counts[self.classes, None]).float()


def _rows(trainer: Trainer, role: str) -> Any:
    loader = row_loader(trainer.train_dataloader, role)
    if loader is None:
        raise MisconfigurationException(
            f"DUCK reads all {role} rows one by one, but the run has none, or they are of an iterable dataset. Pass "
            "trainer.fit(module, {'forget': ..., 'retain': ...}) with map-style datasets."
        )
    return loader
