"""Rewinding: choice of the epoch whose forget error is closest to the error on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn.core.checks import strategy
from lightning_unlearn.core.lightning import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    isolate_rng,
    rank_zero_info,
)
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.core.resume import ResumableCallback
from lightning_unlearn.core.rows import RunRows, row_loader
from lightning_unlearn.core.scores import Score, classifier_nll, prediction_score
from lightning_unlearn.functional.classification.matched_error import matched_error

__all__ = ["Rewind"]


class Rewind(ResumableCallback):
    r"""Rewinding, the R of SCRUB+R: chooses the epoch whose error on forget rows is closest to that on unseen rows.

    $$e^* = \arg\min_e \big|\mathrm{err}(\theta_e, D_f) - \mathrm{err}(\theta_E, D_v)\big|$$

    An error on forget rows that is too high reveals as much to an attacker as one that is too low. $D_v$ are held-out
    rows with the class distribution of $D_f$: the errors of each class are weighted to match it. After the last epoch
    $E$, the module gets the weights of epoch $e^*$; among equal ones, of the latest. It works with any objective. Put
    it before a monitor in the list of callbacks, so that the monitor measures the final module.

    Each epoch is saved as ``rewind/epoch=<e>.ckpt``, a checkpoint of the module without optimizer states; none is
    deleted. A resumed run continues with the checkpoints of the interrupted run.

    Args:
        heldout: $D_v$: the name of a set of the run's ``ForgetRetainDataModule(heldout={...})``, or a loader of a
            map-style dataset.
        match_classes: Whether to weight the errors to the classes of the forget rows. Switch it off if labels are not
            classes.
        dirpath: Folder of the checkpoints; by default ``rewind`` in that of the run's ``ModelCheckpoint``, or in
            ``default_root_dir``.
        score: Reads predictions from the module.

    Raises:
        ValueError: If the score gives no logits, or a class of the forget rows has no held-out row.
        MisconfigurationException: If there is no such set, rows can't be read one by one, weights are sharded, or a
            checkpoint of the interrupted run is missing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import SCRUB
        >>> trainer = Trainer(callbacks=[SCRUB(), Rewind("test")], max_epochs=10, logger=False, accelerator="cpu")

    References:
        Kurmanji et al., *Towards Unbounded Machine Unlearning*, arXiv:2302.09880.
    """

    def __init__(
        self,
        heldout: str | DataLoader = "heldout",
        match_classes: bool = True,
        dirpath: str | None = None,
        score: Score = classifier_nll,
    ) -> None:
        self.score = prediction_score("Rewind", score, "counts errors")
        self.heldout, self.match_classes, self.dirpath = heldout, match_classes, dirpath
        self.errors: dict[int, float] = {}
        """Error on the forget rows after each epoch."""
        self.reference: float | None = None
        """Error of the last epoch on the held-out rows."""
        self.chosen: int | None = None
        """The epoch whose weights the module has after the run."""
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the strategy."""
        if stage == "fit":
            strategy("Rewind", trainer, sharded=False, reason="saves and loads whole weights")

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Check the rows."""
        checkpoints = trainer.checkpoint_callback
        default = Path(getattr(checkpoints, "dirpath", None) or trainer.default_root_dir) / "rewind"
        self._start(trainer, module, {}, Path(self.dirpath or default))

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Check the rows, and the checkpoints of the resumed run."""
        self._start(trainer, module, state["errors"], Path(self.dirpath or state["folder"]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and save the epoch."""
        wrong, _ = self._wrong(trainer, pl_module, self._forget(trainer))
        self.errors[trainer.current_epoch] = wrong.double().mean().item()
        trainer.save_checkpoint(self._path(trainer.current_epoch), weights_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the weights of the chosen epoch."""
        if not self.errors:
            return
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
        """The errors so far, and the folder of the checkpoints."""
        return {"errors": dict(self.errors), "folder": str(self._folder)}

    def _start(self, trainer: Trainer, module: LightningModule, errors: Mapping[int, float], folder: Path) -> None:
        self.reference = self.chosen = None
        self.errors, self._folder = dict(errors), folder
        missing = [epoch for epoch in self.errors if not self._path(epoch).is_file()]
        if missing:
            raise MisconfigurationException(
                f"Rewind resumes a run whose epochs {missing} are not in {self._folder}. Pass the folder of its "
                "checkpoints as dirpath, or start a new run without ckpt_path."
            )
        forget, heldout = self._forget(trainer), self._heldout(trainer)
        if self.match_classes:  # report a class without held-out rows now, not after the last epoch
            wrong, labels = self._wrong(trainer, module, heldout)
            matched_error(wrong, labels, like=self._wrong(trainer, module, forget)[1])

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch={epoch}.ckpt"

    def _forget(self, trainer: Trainer) -> RunRows:
        return RunRows.of_role(trainer, "forget", "Rewind")

    def _heldout(self, trainer: Trainer) -> RunRows:
        loader: Any = self.heldout
        if isinstance(loader, str):
            datamodule = getattr(trainer, "datamodule", None)
            sets = datamodule.set_loaders() if isinstance(datamodule, ForgetRetainDataModule) else {}
            if loader not in sets:
                raise MisconfigurationException(
                    f"Rewind(heldout={loader!r}) is the name of a set of a ForgetRetainDataModule, but the run has "
                    f"the sets {sorted(sets)}. Pass one of them, heldout={{...}} to the data module, or a loader."
                )
            loader = sets[loader]
        rows = row_loader({"heldout": loader}, "heldout")
        if rows is None:
            raise MisconfigurationException(
                f"Rewind reads held-out rows of a map-style dataset, but heldout is a {type(loader).__name__}. Pass a "
                "torch DataLoader of one."
            )
        return RunRows(trainer, rows, "Rewind: held-out rows")

    def _wrong(self, trainer: Trainer, module: LightningModule, rows: RunRows) -> tuple[Tensor, Tensor]:
        """Whether each row is misclassified, and its label."""
        parts = []
        # A loader draws a seed even if it does not shuffle.
        with isolate_rng(), evaluating(module), trainer.precision_plugin.forward_context():
            for batch, _ in rows:
                predictions = self.score.predictions(module, batch)
                wrong = predictions.logits.argmax(1) != predictions.classes()
                parts.append((wrong.cpu(), predictions.classes().cpu()))
        wrong, labels = (torch.cat(column) for column in zip(*rows.gather(parts), strict=True))
        return wrong, labels
