"""LightningModule for any torch classifier."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.core.batches import row_count
from lightning_unlearn.core.checks import above, one_of
from lightning_unlearn.core.class_scores import binary_nll, segmentation_nll, soft_label_nll
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.resume import record_class
from lightning_unlearn.core.scores import Batch, PredictionScore, classifier_nll

__all__ = ["LitClassifier"]

Labels = Literal["classes", "binary", "pixels", "soft"]

_SCORES: dict[str, PredictionScore] = {
    "classes": classifier_nll,
    "binary": binary_nll,
    "pixels": segmentation_nll,
    "soft": soft_label_nll,
}


class LitClassifier(LightningModule):
    """LightningModule of a classifier, given by its import path or as an object.

    Trained on its own, it uses cross-entropy and SGD; with an unlearning callback, it unlearns.

    Args:
        model: Import path of the model's class or factory, such as ``"torchvision.models.resnet18"``, or the model.
            Its output must be logits ``(B, K)`` or an object with ``.logits``. To load a checkpoint of a model that was
            passed as an object, pass it again: ``load_from_checkpoint(path, model=...)``.
        model_args: Arguments of the class or factory.
        weights: File with a state dict of the model, saved by ``torch.save``.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        labels: Kind of labels: ``"classes"``, see [`classifier_nll`][lightning_unlearn.classifier_nll];
            ``"binary"``, one logit each, see [`binary_nll`][lightning_unlearn.binary_nll]; ``"pixels"``, see
            [`segmentation_nll`][lightning_unlearn.segmentation_nll]; or ``"soft"``, see
            [`soft_label_nll`][lightning_unlearn.soft_label_nll]. Give the unlearning callback the same ``score``.

    Raises:
        ValueError: If ``model`` is not an import path, ``lr`` is not positive, or ``labels`` is unknown.

    Example:
        >>> module = LitClassifier("torch.nn.Linear", {"in_features": 4, "out_features": 3})
        >>> module(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        weights: str | None = None,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        labels: Labels = "classes",
    ) -> None:
        super().__init__()
        self.score = _SCORES[one_of("labels", labels, Labels)]
        self.lr, self.momentum, self.weight_decay = above("lr", lr, 0), momentum, weight_decay
        if isinstance(model, nn.Module) and model_args:
            raise ValueError("model_args are arguments of a class given by its import path, but model is an object.")
        self.save_hyperparameters(ignore=["model"] if isinstance(model, nn.Module) else None)
        self.model = model if isinstance(model, nn.Module) else _imported(model)(**(model_args or {}))
        if weights is not None:
            self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The model's output: logits, or an object that has them."""
        return self.model(*inputs, **named)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood of the rows of a batch of ``(inputs, labels)``, or of a dict with ``labels``."""
        if isinstance(batch, dict) and "forget" in batch:
            raise MisconfigurationException(
                "The batch has rows to forget, but the Trainer has no unlearning callback: it would train on them. "
                "Add one, such as Trainer(callbacks=[UGradSL()])."
            )
        loss = self.score(self, batch).mean()
        self.log("train/nll", loss, batch_size=self._rows(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accuracy and cross-entropy of each named set, logged as ``val/<set>_accuracy`` and ``val/<set>_nll``."""
        self._evaluate(batch, self.trainer.val_dataloaders, "val", dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accuracy and cross-entropy of each test set, logged as ``test/<set>_accuracy`` and ``test/<set>_nll``."""
        self._evaluate(batch, self.trainer.test_dataloaders, "test", dataloader_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD on all trainable weights."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the model's class, so that ``lightning-unlearn export`` can name it."""
        record_class(self, checkpoint)

    def _evaluate(self, batch: Batch, loaders: Any, stage: str, number: int) -> None:
        name = f"{list(loaders)[number]}_" if isinstance(loaders, dict) else ""
        predictions = self.score.predictions(self, batch)
        right = (predictions.logits.argmax(1) == predictions.classes()).float()
        values = {f"{stage}/{name}accuracy": right.mean(), f"{stage}/{name}nll": predictions.nll().mean()}
        self.log_dict(values, batch_size=predictions.size, add_dataloader_idx=False, sync_dist=True)

    @staticmethod
    def _rows(batch: Batch) -> int:
        return row_count(batch)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"model must be an import path such as 'torchvision.models.resnet18', but got {path!r}.")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model={path!r} can't be imported: {error}.") from error
