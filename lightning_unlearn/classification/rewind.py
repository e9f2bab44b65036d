"""Going back to the epoch that forgot just enough."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.core.resume import ResumableCallback
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.classification.matched_error import matched_error

__all__ = ["Rewind"]


class Rewind(ResumableCallback):
    r"""Rewinding, the R of SCRUB+R: of all epochs, keep the one that errs on forget rows as on rows it never saw.

    $$e^* = \arg\min_e \big|\mathrm{err}(\theta_e, D_f) - \mathrm{err}(\theta_E, D_v)\big|$$

    An error on forget rows that is too high tells an attacker as much as one that is too low. $D_v$ are held-out rows
    with the class distribution of $D_f$: errors of each class are weighted to it. After the last epoch $E$, the module
    gets the weights of epoch $e^*$; of equal ones, of the latest. It works beside any objective; put it before a
    monitor in the list of callbacks, so that the monitor measures the module that remains.

    Each epoch is saved as ``rewind/epoch=<e>.ckpt``, a checkpoint of the module without optimizer states; all of them
    stay. A resumed run goes on with those of the run before.

    Args:
        heldout: $D_v$: a loader, or the name of a set of the run's ``ForgetRetainDataModule(heldout={...})``.
        match_classes: Weight the errors to the classes of the forget rows. Switch it off where labels are no classes.
        dirpath: Folder of the checkpoints; by default ``rewind`` in that of the run's ``ModelCheckpoint``, or in
            ``default_root_dir``.
        score: Reads predictions off the module.

    Raises:
        ValueError: If the score gives no logits, or a class of the forget rows has no held-out row.
        MisconfigurationException: If there is no such set, forget rows can't be read one by one, weights are sharded,
            or a checkpoint of the run before is gone.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import SCRUB
        >>> trainer = Trainer(callbacks=[SCRUB(), Rewind("test")], max_epochs=10, logger=False, accelerator="cpu")

    References:
        Kurmanji et al., *Towards Unbounded Machine Unlearning*, arXiv:2302.09880.
    """

    def __init__(
        self,
        heldout: str | Iterable[Batch] = "heldout",
        match_classes: bool = True,
        dirpath: str | None = None,
        score: Score = classifier_nll,
    ) -> None:
        if not isinstance(score, PredictionScore):
            raise ValueError(
                f"Rewind counts errors, but score={score!r} only gives likelihoods. Use classifier_nll, or decorate a "
                "function that returns Predictions with from_predictions."
            )
        self.heldout, self.match_classes, self.dirpath, self.score = heldout, match_classes, dirpath, score
        self.errors: dict[int, float] = {}
        """Error on the forget rows after each epoch."""
        self.reference: float | None = None
        """Error of the last epoch on the held-out rows."""
        self.chosen: int | None = None
        """The epoch whose weights the module has in the end."""
        self._folder = Path()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rows, and the checkpoints of the run that is resumed."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise MisconfigurationException(
                "Rewind reads the forget rows on each process by itself, which ModelParallelStrategy can't. Use one "
                "device or strategy='ddp'."
            )
        self.reference = self.chosen = None
        restored, self._state = self._state or {"errors": {}, "folder": None}, None
        checkpoints = trainer.checkpoint_callback
        default = Path(getattr(checkpoints, "dirpath", None) or trainer.default_root_dir) / "rewind"
        self._folder = Path(self.dirpath or restored["folder"] or default)
        self.errors = dict(restored["errors"])
        gone = [e for e in self.errors if not self._path(e).is_file()]
        if gone:
            raise MisconfigurationException(
                f"Rewind resumes a run whose epochs {gone} are not in {self._folder}. Pass the folder of its "
                "checkpoints as dirpath, or start anew without ckpt_path."
            )
        forget, heldout = self._forget(trainer), self._heldout(trainer)
        if self.match_classes:
            with isolate_rng():  # even a loader that does not shuffle draws a seed
                wrong, labels = self._wrong(trainer, pl_module, heldout)
                matched_error(wrong, labels, like=self._wrong(trainer, pl_module, forget)[1])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and keep the epoch."""
        with isolate_rng():
            wrong, _ = self._wrong(trainer, pl_module, self._forget(trainer))
        self.errors[trainer.current_epoch] = wrong.double().mean().item()
        trainer.save_checkpoint(self._path(trainer.current_epoch), weights_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the weights of the epoch that comes closest."""
        if not self.errors:
            return
        with isolate_rng():
            wrong, labels = self._wrong(trainer, pl_module, self._heldout(trainer))
            _, like = self._wrong(trainer, pl_module, self._forget(trainer))
        reference = matched_error(wrong, labels, like).item() if self.match_classes else wrong.double().mean().item()
        chosen = min(self.errors, key=lambda epoch: (abs(self.errors[epoch] - reference), -epoch))
        checkpoint = torch.load(self._path(chosen), map_location="cpu", weights_only=True)
        pl_module.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)
        self.reference, self.chosen = reference, chosen
        rank_zero_info(
            f"Rewind: the error on forget rows is {self.errors[chosen]:.3f} after epoch {chosen}, closest to the "
            f"{reference:.3f} on held-out rows. The module has the weights of {self._path(chosen)}."
        )

    def state_dict(self) -> dict[str, Any]:
        """The errors so far and where their checkpoints are."""
        return {"errors": dict(self.errors), "folder": str(self._folder)}

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch={epoch}.ckpt"

    def _forget(self, trainer: Trainer) -> Iterable[Batch]:
        loader = row_loader(trainer.train_dataloader, "forget")
        if loader is None:
            raise MisconfigurationException(
                "Rewind reads the forget rows one by one, but the run has none, or they are of an iterable dataset. "
                "Pass trainer.fit(module, {'forget': ..., 'retain': ...}) with map-style datasets."
            )
        return loader

    def _heldout(self, trainer: Trainer) -> Iterable[Batch]:
        if not isinstance(self.heldout, str):
            return self.heldout
        datamodule = getattr(trainer, "datamodule", None)
        sets = datamodule.val_dataloader() if isinstance(datamodule, ForgetRetainDataModule) else {}
        if self.heldout not in sets:
            raise MisconfigurationException(
                f"Rewind(heldout={self.heldout!r}) is the name of a set of a ForgetRetainDataModule, but the run has "
                f"the sets {sorted(sets)}. Pass one of them, heldout={{...}} to the data module, or a loader."
            )
        return sets[self.heldout]

    def _wrong(self, trainer: Trainer, module: LightningModule, loader: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Whether each row is misclassified, and its label."""
        assert isinstance(self.score, PredictionScore)
        found = []
        with evaluating(module), trainer.precision_plugin.forward_context():
            for batch in loader:
                batch = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))
                predictions = self.score.predictions(module, batch)
                found.append((predictions.logits.argmax(1) != predictions.labels, predictions.labels))
        wrong, labels = (torch.cat(column).cpu() for column in zip(*found, strict=True))
        return wrong, labels
