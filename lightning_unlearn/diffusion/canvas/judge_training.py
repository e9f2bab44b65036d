"""Training of judges of the style and the object on a style-object folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.distributed import rank
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.lightning import LightningModule, Trainer, seed_everything
from lightning_unlearn.core.trainer_progress import log_progress
from lightning_unlearn.diffusion.canvas.classifier import CanvasClassifier
from lightning_unlearn.diffusion.canvas.data import CanvasTrainingDataModule
from lightning_unlearn.diffusion.canvas.folder import StyleObjectFolder
from lightning_unlearn.diffusion.canvas.judges import CanvasJudges
from lightning_unlearn.diffusion.canvas.names import CanvasNames, Kind, names_of

__all__ = ["LitCanvasJudge", "train_canvas_judges"]

_KINDS: tuple[Kind, ...] = ("style", "object")


class LitCanvasJudge(LightningModule):
    """Trains one network with a head for the style and one for the object, on both at once.

    The loss is the sum of the two cross-entropies. AdamW's learning rate rises and falls once over the run. Validation
    and test log ``val/style_accuracy``, ``val/object_accuracy`` and the same of ``test``.

    Args:
        backbone: ``"miniature"``, or folder or hub id of an image encoder of ``transformers``, see
            [`CanvasClassifier`][lightning_unlearn.CanvasClassifier].
        names: The styles and objects, ``"unlearncanvas"`` or ``"mini"`` or names of your own; the photos are a style.
        output: Folder that the network is written to at the end of training, for
            [`CanvasJudges.from_pretrained`][lightning_unlearn.CanvasJudges.from_pretrained]; ``None`` for no folder.
        lr: Highest learning rate; 2e-3 suits the miniature, and 1e-4 or less a vision transformer.
        weight_decay: Decoupled weight decay.
        noise: Standard deviation of the noise that is added to colours in [0, 1] while training.
        revision: Branch, tag or commit on the hub.

    Raises:
        ValueError: If a number is out of range, or the backbone is no image encoder.

    Example:
        >>> module = LitCanvasJudge(names="mini")
        >>> {kind: len(classes) for kind, classes in module.network.classes.items()}
        {'style': 6, 'object': 5}
    """

    def __init__(
        self,
        backbone: str = "miniature",
        names: CanvasNames | str = "unlearncanvas",
        output: str | None = None,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        noise: float = 0.0,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.names, self.output = names_of(names), output
        self.lr, self.weight_decay = above("lr", lr, 0), at_least("weight_decay", weight_decay, 0)
        self.noise = at_least("noise", noise, 0)
        classes: dict[Kind, tuple[str, ...]] = {"style": self.names.all_styles, "object": self.names.objects}
        self.network = CanvasClassifier(backbone, classes, revision=revision)
        self.network.train()  # transformers opens models for evaluation

    def forward(self, images: Tensor) -> dict[Kind, Tensor]:
        """Logits of each head, of images ``(B, 3, H, W)`` with colours in [0, 1]."""
        return self.network(images)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the cross-entropies of style and object."""
        images = (batch["pixel_values"] + 1) / 2
        logits = self(images + self.noise * torch.randn_like(images) if self.noise else images)
        losses = [F.cross_entropy(logits[kind], batch[kind]) for kind in _KINDS]
        self.log_dict(
            {f"train/{kind}_nll": loss for kind, loss in zip(_KINDS, losses, strict=True)}, batch_size=len(images)
        )
        return losses[0] + losses[1]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accuracies of style and object."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same on the test images."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        """AdamW, with a learning rate that rises and falls once."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_end(self) -> None:
        """Write the network; the first process does."""
        if self.output is not None and rank() == 0:
            self.network.save_pretrained(self.output)

    def judges(self) -> CanvasJudges:
        """The network as a pair of judges; it is frozen."""
        return CanvasJudges.of(self.network, self.names, Path(self.output or "canvas").name)

    def _evaluate(self, batch: dict[str, Tensor], stage: str) -> None:
        logits = self((batch["pixel_values"] + 1) / 2)
        right = {f"{stage}/{kind}_accuracy": (logits[kind].argmax(1) == batch[kind]).float().mean() for kind in _KINDS}
        self.log_dict(right, batch_size=len(batch["style"]), sync_dist=True, prog_bar=True)


def train_canvas_judges(
    folder: StyleObjectFolder,
    output: str | Path,
    backbone: str = "miniature",
    epochs: int = 10,
    batch_size: int = 32,
    lr: float = 2e-3,
    noise: float = 0.0,
    flip: float = 0.0,
    seed: int = 0,
    num_workers: int = 0,
    trainer: dict[str, Any] | None = None,
) -> tuple[CanvasJudges, dict[str, float]]:
    """Train a network of two heads on the training images of a folder, and measure it on its test images.

    The network is written to a folder for [`CanvasJudges.from_pretrained`]
    [lightning_unlearn.CanvasJudges.from_pretrained], and its accuracies beside it as ``accuracy.json``.

    Args:
        folder: Images of every style and object, and the photos.
        output: Folder to write.
        backbone: As of [`LitCanvasJudge`][lightning_unlearn.LitCanvasJudge].
        epochs: Passes over the training images.
        batch_size: Images in a batch, per process.
        lr: Highest learning rate.
        noise: Standard deviation of the noise that is added to colours in [0, 1] while training.
        flip: Probability that a training image is mirrored.
        seed: Seed of the first weights, the order of images, and noise.
        num_workers: Processes that load images.
        trainer: Further arguments of the Trainer, such as ``{"precision": "bf16-mixed"}``.

    Returns:
        The judges, and ``style_accuracy`` and ``object_accuracy`` of the test images.

    Raises:
        ValueError: If a number is out of range, the backbone is no image encoder, or a pair has fewer than three
            images.
    """
    seed_everything(seed, verbose=False)
    module = LitCanvasJudge(backbone, folder.names, str(output), lr, noise=noise)
    data = CanvasTrainingDataModule(
        folder, size=module.network.size, flip=flip, batch_size=batch_size, num_workers=num_workers
    )
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, **(trainer or {})}
    run = Trainer(max_epochs=epochs, **options)
    log_progress(run)
    run.fit(module, data)
    (tested,) = run.test(module, data, verbose=False)
    accuracies = {f"{kind}_accuracy": tested[f"test/{kind}_accuracy"] for kind in _KINDS}
    if rank() == 0:
        write_text(Path(output) / "accuracy.json", json.dumps(accuracies, indent=2) + "\n")
    return module.judges(), accuracies
