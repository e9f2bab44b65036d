"""DUCK: distance-based unlearning via centroids of other classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_unlearn.classification.features import find_head, head_of, last_rows
from lightning_unlearn.classification.objective import (
    BatchNormMode,
    ClassifierObjective,
    batch_accuracy,
    check_one_label,
    forget_accuracy,
)
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, at_least, between
from lightning_unlearn.core.distributed import sum_over_ranks
from lightning_unlearn.core.interruption import stop
from lightning_unlearn.core.layers import HOOK_NOT_CALLED, find_layer, watching
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer, isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.rows import RunRows
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.classification.duck import centroid_distance, nearest_wrong_centroid
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["DUCK"]


class DUCK(ClassifierObjective):
    r"""DUCK: moves features of forget rows to the nearest centroid of another class; retain rows keep their labels.

    $$\mathcal{L} = \frac{\lambda_1}{|B_f|} \sum_f \big[1 - \cos(h_\theta(x), \mu_{c(x)})\big] + \frac{\lambda_2}{|B_r|}
    \sum_r \ell(z_r / T, y_r), \quad c(x) = \arg\max_{c \ne y} \cos(h_{\theta_o}(x), \mu_c)$$

    The centroids $\mu_c$ are the mean features of the retain rows of each class under the original model, which also
    determines the nearest centroid of a row, so that a row keeps its centroid. Training ends after the first epoch in
    which the accuracy on all forget rows, in evaluation mode, is below ``target_accuracy``. The released code trains
    with Adam. The default weights are ours.

    Args:
        lambda1: Weight of the distance $\lambda_1 \ge 0$.
        lambda2: Weight of the retain rows $\lambda_2 \ge 0$.
        temperature: $T > 0$ of the retain rows' loss.
        target_accuracy: In (0, 1]; near 0 to forget a class, the accuracy on unseen rows to forget random rows.
            ``None`` never ends the run early.
        layer: Module whose flattened output is the features: the end of its dotted name, or a regular expression that
            matches exactly one name. By default the features are the input of the ``nn.Linear`` that gives the logits.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a number is out of range, or a forget row has no centroid of another class.
        MisconfigurationException: If the layer is missing or has no vector per row, or rows can't be read one by one.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DUCK(target_accuracy=0.01)], logger=False, accelerator="cpu")

    References:
        Cotogni et al., *DUCK: Distance-based Unlearning via Centroid Kinematics*, arXiv:2312.02052.
        Triantafillou et al., *Are we making progress in unlearning? Findings from the first NeurIPS unlearning
        competition*, arXiv:2406.09073.
    """

    needs = Needs(snapshot=True)
    separable = True

    private = ("snapshot", "caches", "centroids")

    def __init__(
        self,
        lambda1: float = 1.0,
        lambda2: float = 1.0,
        temperature: float = 1.0,
        target_accuracy: float | None = 0.01,
        layer: str | None = None,
        bn_mode: BatchNormMode = "joint",
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(bn_mode, score, reference="snapshot")
        self.keep_reference = keep_reference
        if target_accuracy is not None:
            above("target_accuracy", target_accuracy, 0, "no accuracy is below it. None never ends the run")
            between("target_accuracy", target_accuracy, 0, 1)
        self.lambda1, self.lambda2 = at_least("lambda1", lambda1, 0), at_least("lambda2", lambda2, 0)
        self.temperature = above("temperature", temperature, 0)
        self.target_accuracy, self.layer = target_accuracy, layer
        self._head: tuple[str, nn.Module] | None = None
        self.centroids: Tensor | None = None
        """Mean features of each class of retain rows, shape ``(M, d)``, once a run has begun."""
        self.classes = torch.empty(0, dtype=torch.int64)
        """The class of each centroid, shape ``(M,)``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the layer exists."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._layer(pl_module)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Compute the centroids."""
        self._find_head(trainer, module)
        if self.target_accuracy is not None:  # fail now rather than after an epoch
            RunRows.of_role(trainer, "forget", "DUCK")
        self._compute_centroids(trainer, module)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue with the centroids of the checkpoint."""
        self._find_head(trainer, module)
        self.centroids, self.classes = state["centroids"].to(module.device), state["classes"].to(module.device)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Distance of the forget rows and cross-entropy of the retain rows."""
        assert self.centroids is not None
        assert self.snapshot is not None
        # Run the original model first: exchanging weights would invalidate a graph that already refers to them.
        with self.snapshot.active(module):
            start, features = self._featured(module, batch["forget"])
        nearest = nearest_wrong_centroid(features, start.classes(), self.centroids, self.classes)
        goals = self.centroids[nearest]
        name, layer = self._layer(module)

        def terms(roles: Sequence[str]) -> dict[str, Tensor]:
            with watching(layer) as calls:
                read = dict(zip(roles, self.predictions(module, batch, roles), strict=True))
            losses, parts = [], {}
            if "forget" in read:
                seen = calls.inputs if self.layer is None else calls.outputs
                distance = centroid_distance(last_rows(name, seen, len(read["forget"].labels)), goals)
                parts["forget_distance"] = self.row_mean(distance)
                losses.append(self.lambda1 * parts["forget_distance"])
            if "retain" in read:
                retain = read["retain"]
                nll = token_nll(retain.logits.float() / self.temperature, retain.labels)
                parts |= {"retain": self.row_mean(nll), "retain_accuracy": batch_accuracy(retain)}
                losses.append(self.lambda2 * parts["retain"])
            return {"loss": sum(losses[1:], losses[0]), **parts}

        return self.by_term(module, terms, ("retain", "forget"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop once the forget rows are forgotten."""
        if self.target_accuracy is None:
            return
        accuracy = forget_accuracy("DUCK", trainer, pl_module, self.score)
        pl_module.log("unlearn/forget_accuracy", accuracy)
        if accuracy < self.target_accuracy:
            stop(
                trainer,
                f"the accuracy on the forget rows is {accuracy:.3g}, below target_accuracy={self.target_accuracy:g}",
            )

    def state_dict(self) -> dict[str, Any]:
        """The method's name, the original model and the centroids."""
        centroids = self.centroids.cpu() if self.centroids is not None else None
        return {**super().state_dict(), "centroids": centroids, "classes": self.classes.cpu()}

    def _find_head(self, trainer: Trainer, module: LightningModule) -> None:
        if self.layer is not None:
            return
        assert isinstance(self.score, PredictionScore)
        with isolate_rng():  # even a loader without shuffling draws a seed
            batch, _ = next(iter(RunRows.of_role(trainer, "retain", "DUCK")))
        with trainer.precision_plugin.forward_context():
            self._head = head_of(module, self.score, batch)
        if self._head is None:
            raise MisconfigurationException(
                f"DUCK takes the input of the nn.Linear that gives the logits for features, but no such layer of "
                f"{type(module).__name__} does. Name the layer whose output is the features: DUCK(layer=...). "
                f"{HOOK_NOT_CALLED}"
            )

    def _layer(self, module: nn.Module) -> tuple[str, nn.Module]:
        if self.layer is not None:
            return find_layer(module, self.layer)
        return self._head or find_head("DUCK", module, None)

    def _featured(self, module: LightningModule, rows: Batch) -> tuple[Predictions, Tensor]:
        """Predictions of some rows, and their features, shape ``(B, d)``."""
        assert isinstance(self.score, PredictionScore)
        name, layer = self._layer(module)
        with watching(layer) as calls:
            predictions = self.score.predictions(module, rows)
        check_one_label("DUCK", "moves the features of a row away from its class", predictions)
        return predictions, last_rows(name, calls.inputs if self.layer is None else calls.outputs, predictions.size)

    def _read_rows(
        self, trainer: Trainer, module: LightningModule, role: str
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Logits, labels and features of this process's share of the rows of a role, in evaluation mode."""
        with isolate_rng(), evaluating(module), trainer.precision_plugin.forward_context():
            for batch, counts in RunRows.of_role(trainer, role, "DUCK"):
                predictions, features = self._featured(module, batch)
                part = slice(None if counts else 0)
                yield predictions.logits[part], predictions.classes()[part], features[part]

    def _compute_centroids(self, trainer: Trainer, module: LightningModule) -> None:
        totals = torch.zeros(0)  # number of rows and sum of features of each class
        for logits, labels, features in self._read_rows(trainer, module, "retain"):
            if not len(totals):
                totals = torch.zeros(logits.shape[1], 1 + features.shape[1], dtype=torch.float64)
            totals.index_add_(0, labels.cpu(), F.pad(features, (1, 0), value=1.0).cpu().double())
        sum_over_ranks(totals, module.device)
        classes = totals[:, 0].nonzero().squeeze(1)
        self.classes = classes.to(module.device)
        self.centroids = (totals[classes, 1:] / totals[classes, :1]).float().to(module.device)
