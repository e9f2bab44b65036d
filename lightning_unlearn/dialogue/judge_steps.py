"""Base class of a judge: what a Trainer does with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.dialogue.adapters import trained_names
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.frozen_layers import FrozenLayers
from lightning_unlearn.dialogue.label_reader import LabelReader
from lightning_unlearn.dialogue.metrics.rating_metrics import RatingMetrics
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.task import RatingTask
from lightning_unlearn.dialogue.tuning import JudgeTuning
from lightning_unlearn.language.causal_lm import LitCausalLM

if TYPE_CHECKING:
    from lightning_unlearn.dialogue.judge import DialogueJudge

__all__ = ["JudgeSteps"]

_DRAWS = 1000  # bootstrap samples of the intervals


class JudgeSteps(LightningModule):
    """Fine-tunes, predicts, measures the agreement with annotators, and keeps checkpoints of adapters.

    A subclass supplies ``task`` and ``forward``, which gives one rating a dialogue.

    Args:
        lm: The language model.
        tuning: The loss that it is fine-tuned with.
        max_tokens: Largest batch in tokens, where label probabilities are read.
    """

    def __init__(self, lm: LitCausalLM, tuning: JudgeTuning, max_tokens: int) -> None:
        super().__init__()
        self.lm, self.tuning, self.max_tokens = lm, tuning, max_tokens
        self.frozen = FrozenLayers(lm, 0)
        self._reader: LabelReader | None = None
        self._run_reader: LabelReader | None = None
        self._metrics: list[RatingMetrics] = []

    @property
    def task(self) -> RatingTask:
        """What is rated."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Called before the first rating of a Trainer's run; does nothing by default."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Dialogues are text, which stays where it is."""
        if isinstance(batch, list) and all(isinstance(part, Dialogue) for part in batch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_start(self) -> None:
        """Cache the outputs of frozen layers, where ``tuning`` gives memory for them."""
        self.frozen = FrozenLayers(self.lm, self.tuning.frozen_memory * 2**30)

    def training_step(self, batch: list[Dialogue], batch_idx: int) -> Tensor:
        """The mean loss of rated dialogues."""
        loss = self.tuning.losses(cast("DialogueJudge", self), batch, self.current_epoch).mean()
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def on_train_end(self) -> None:
        """Free the cache of frozen layers."""
        self.frozen = FrozenLayers(self.lm, 0)

    def configure_optimizers(self) -> Any:
        """AdamW over what trains, and a schedule per step, as the `LitCausalLM` has them."""
        return self.lm.configure_optimizers()

    def on_predict_epoch_start(self) -> None:
        """Keep what the prompts of an epoch share."""
        self.prepare()
        self._run_reader = LabelReader(self.lm, self.max_tokens)

    def on_predict_epoch_end(self) -> None:
        self._run_reader = None

    def predict_step(self, batch: list[Dialogue], batch_idx: int) -> list[Rating]:
        """One rating a dialogue."""
        with self._reading(self._run_reader or LabelReader(self.lm, self.max_tokens)):
            return self(batch)

    def on_validation_epoch_start(self) -> None:
        """Keep what the prompts of an epoch share, and measure anew."""
        self._begin_measuring(draws=0)

    def on_test_epoch_start(self) -> None:
        """Keep what the prompts of an epoch share, and measure anew."""
        self._begin_measuring(_DRAWS)

    def validation_step(self, batch: list[Dialogue], batch_idx: int) -> None:
        """Agreement with the annotators, logged as ``val/spearman`` and so on."""
        self._measure(batch)

    def test_step(self, batch: list[Dialogue], batch_idx: int) -> None:
        """The same as ``test/spearman`` and so on, with bootstrap intervals."""
        self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_measured("val")

    def on_test_epoch_end(self) -> None:
        self._log_measured("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of a judge with adapters keep these alone."""
        if self.lm.hparams["lora"] is not None and "state_dict" in checkpoint:
            trained = trained_names(self)
            checkpoint["state_dict"] = {n: value for n, value in checkpoint["state_dict"].items() if n in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights of the base model from the model that is there."""
        if self.lm.hparams["lora"] is not None and "state_dict" in checkpoint:
            trained = trained_names(self)
            base = {name: value for name, value in self.state_dict().items() if name not in trained}
            checkpoint["state_dict"] = {**base, **checkpoint["state_dict"]}

    def _begin_measuring(self, draws: int) -> None:
        self.prepare()
        self._run_reader = LabelReader(self.lm, self.max_tokens)
        # Not a submodule: its rows belong to an epoch, and not to a checkpoint of the judge.
        self._metrics = [RatingMetrics(self.task, draws=draws).to(self.device)]

    def _measure(self, batch: list[Dialogue]) -> None:
        self._metrics[0].update(self.predict_step(batch, 0), batch)

    def _log_measured(self, stage: str) -> None:
        self._run_reader = None
        values = {f"{stage}/{name}": value.float() for name, value in self._metrics[0].compute().items()}
        self.log_dict(values, batch_size=1)

    @contextmanager
    def _reading(self, reader: LabelReader) -> Iterator[None]:
        before, self._reader = self._reader, reader
        try:
            yield
        finally:
            self._reader = before
