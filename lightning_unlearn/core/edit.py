"""Base class of one-shot methods, which edit the weights without training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.checks import strategy
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lightning_unlearn.core.scores import Batch, Score

__all__ = ["Edit"]


class Edit(UnlearnCallback):
    """A one-shot method: ``fit`` changes the weights before the first batch and ends without an update.

    The settings of a training run apply. With ``max_epochs=0`` Lightning ends before any callback could act, so such a
    run is refused. Where checkpoints are enabled, the edited module is saved as ``edited.ckpt``. Every process makes
    the whole edit. Without a Trainer, call ``edit``.

    A subclass supplies ``edit``.

    Args:
        score: Reads the per-example negative log-likelihood off the module.

    Raises:
        MisconfigurationException: If the run ends before it starts, has no rows that can be read one by one, shards
            its weights, or resumes from a checkpoint that is edited already.
    """

    makes_steps = False
    inseparable = not_averaged = "edits the weights once, without an update"

    def __init__(self, score: Score) -> None:
        super().__init__(score)

    @abstractmethod
    def edit(self, module: LightningModule, forget: Iterable[Batch], retain: Iterable[Batch] | None = None) -> None:
        """Change the weights of a module in place.

        Args:
            module: Any LightningModule; its parameters that require gradients change.
            forget: Loads the rows to forget from a map-style dataset.
            retain: Loads the rows to keep, where the method needs them.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        empty = [n for n in ("max_epochs", "max_steps", "limit_train_batches") if getattr(trainer, n) == 0]
        if empty:
            raise MisconfigurationException(
                f"{type(self).__name__} edits when training starts, but {empty[0]}=0 ends the run before that. Leave "
                "it out: an edit ends the run itself, and no update is made."
            )
        strategy(type(self).__name__, trainer, sharded=False, reason="reads whole gradients")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the edit, and end the run: after every callback's ``on_train_start``, where monitors measure first."""
        loaders = self.row_loaders(trainer)
        self.edit(pl_module, loaders["forget"], loaders.get("retain"))
        self._steps = 1
        trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the edited module: there was no epoch for a ModelCheckpoint to save."""
        if trainer.checkpoint_callback is None:
            return
        folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
        path = Path(folder) / "edited.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"The edited module is saved in {path}.")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume: the weights would be edited twice.

        Raises:
            MisconfigurationException: Always.
        """
        raise MisconfigurationException(
            f"The checkpoint is edited by {state_dict['method']} already, and an edit is made once. Call fit without "
            "ckpt_path."
        )

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """An edit makes no update.

        Raises:
            MisconfigurationException: Always.
        """
        raise MisconfigurationException(
            f"{type(self).__name__} has made its edit, and the run goes on training because of min_epochs or "
            "min_steps. Leave them out."
        )
