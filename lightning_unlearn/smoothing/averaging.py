"""Weight averaging over the last updates of unlearning."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lightning_unlearn.core.accumulation import is_last_batch
from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.checks import at_least, strategy
from lightning_unlearn.core.lightning import (
    AVERAGING,
    LightningModule,
    MisconfigurationException,
    Trainer,
    WeightAveraging,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_unlearn.core.resume import callbacks_of, continues, ends
from lightning_unlearn.smoothing.batch_statistics import estimate_statistics

__all__ = ["UnlearnWeightAveraging"]


class UnlearnWeightAveraging(WeightAveraging):
    r"""Averages the module's weights over the last updates; the mean lies in a flatter region than any of them.

    $$\bar\theta = \frac{1}{n} \sum_{i=1}^{n} \theta_{s + (i - 1) k}$$

    $s$ is ``start_step``, $k$ ``every_n_steps``, and $\theta_t$ are the weights after update $t$. It changes no
    gradient, and works beside any objective that trains the module's weights, with or without a strategy that smooths
    the forget term. A step costs nothing, a snapshot one pass over the weights, and the mean takes memory for a copy of
    the module.

    The first snapshot is the weights after update $s$: the starting weights are not part of the mean, and the averaging
    adds them to no checkpoint. Until then validation and checkpoints use the live weights, whereas Lightning's
    ``WeightAveraging`` uses those before the first update. Afterwards both use the mean, and a checkpoint also holds
    the live weights for resuming. After the last batch the mean replaces the live weights, so that the last validation,
    monitors and checkpoints see it. Frozen weights stay; under a mask they stay bit-identical. Batch normalization
    statistics are re-estimated on the retain rows, never on forget rows.

    Args:
        start_step: Update after which the first snapshot is taken, $s \ge 1$.
        every_n_steps: Updates from one snapshot to the next, $k \ge 1$.
        device: Where the mean is kept, such as ``"cpu"``; by default where the module is.

    Raises:
        ValueError: If a number is less than 1.
        MisconfigurationException: On sharded weights, beside another average, or with an objective whose weights at
            different steps can't be averaged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import NPO
        >>> average = UnlearnWeightAveraging(start_step=100, every_n_steps=5)
        >>> trainer = Trainer(callbacks=[NPO(), average], max_steps=125, logger=False, accelerator="cpu")

    References:
        Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*, arXiv:1803.05407.
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization Perspective
        and Beyond*, arXiv:2502.05374.
    """

    def __init__(self, start_step: int = 100, every_n_steps: int = 5, device: str | None = None) -> None:
        super().__init__(device=device)
        self.start_step = at_least("start_step", start_step, 1, "weights of before unlearning are not averaged")
        self.every_n_steps = at_least("every_n_steps", every_n_steps, 1)
        self.snapshots: list[int] = []
        """The updates after which snapshots were taken."""
        self._restored: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._has_mean = False  # whether the module has the mean, and the copy its live weights
        self._validates = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether a snapshot is due after an update; ``step_idx`` is its number, counted from 0."""
        if step_idx is None:
            return False
        behind = step_idx + 1 - self.start_step
        return behind >= 0 and behind % self.every_n_steps == 0

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run."""
        if stage != "fit":
            return
        self._check(trainer)
        if continues(self, trainer, pl_module):
            self._exchange(pl_module, has_mean=False)
        else:
            self._average_model, self.snapshots, self._latest_update_step = None, [], 0
            self._has_mean = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the copy: objectives have added and frozen what they will, and the checkpoint has been read."""
        if self._average_model is None:
            device = self._device or trainer.strategy.root_device
            self._average_model = AveragedModel(pl_module, device=device, use_buffers=self._use_buffers)
        if self._restored is not None:
            mean, state = self._restored
            self._average_model.module.load_state_dict(mean, strict=pl_module.strict_loading)
            self._average_model.n_averaged.copy_(state["n_averaged"])
            self._restored = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the run ends before the first snapshot."""
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if epochs is not None and epochs >= 0 and math.isfinite(batches):
            ends.append(epochs * math.ceil(batches / trainer.accumulate_grad_batches))
        if ends and min(ends) < self.start_step:
            rank_zero_warn(
                f"UnlearnWeightAveraging takes its first snapshot after update {self.start_step}, but the run ends "
                f"after {min(ends)}, so nothing will be averaged. Lower start_step or train for longer."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a snapshot where one is due; after the last one, give the module the mean."""
        before = self._latest_update_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._latest_update_step != before:
            self.snapshots.append(self._latest_update_step)
        if is_last_batch(trainer, batch_idx):
            self._finish(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the mean, once there is one."""
        self._validates = trainer.state.fn == "fit" and bool(self.snapshots) and not self._has_mean
        if self._validates:
            self._exchange(pl_module, has_mean=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the live weights."""
        if self._validates:
            self._exchange(pl_module, has_mean=False)
        self._validates = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the mean where something else has stopped the run, and say so if there is none."""
        if not self.snapshots:
            rank_zero_warn(
                f"UnlearnWeightAveraging has averaged nothing: the run ended after update {trainer.global_step}, and "
                f"the first snapshot is due after update {self.start_step}. The module has its live weights. Lower "
                "start_step or train for longer."
            )
        elif not self._has_mean:
            self._finish(trainer, pl_module)
            rank_zero_warn(
                "The run stopped before max_epochs or max_steps, so the module got the mean of its weights after the "
                "last measurement. trainer.save_checkpoint(...) writes it."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the run, which may go on in another ``fit``."""
        ends(self, trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Go back to the live weights after a crash in validation."""
        self.on_validation_epoch_end(trainer, pl_module)

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The updates after which snapshots were taken."""
        return {**super().state_dict(), "snapshots": list(self.snapshots)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting snapshots."""
        super().load_state_dict(state_dict)
        self.snapshots = list(state_dict["snapshots"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the mean as the weights, with the live weights beside it for resuming; do nothing without snapshots."""
        fits = trainer.state.fn == "fit" and trainer.state.status != "finished"
        if self._average_model is None or not self.snapshots or not fits:
            return
        other = dict(self._average_model.module.state_dict())
        live = other if self._has_mean else checkpoint["state_dict"]
        checkpoint["state_dict"] = checkpoint["state_dict"] if self._has_mean else other
        checkpoint["current_model_state"] = live
        checkpoint["averaging_state"] = {"n_averaged": self._average_model.n_averaged}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the module its live weights, and keep the mean for the copy."""
        if trainer.state.fn != "fit" or "averaging_state" not in checkpoint:
            return
        self._restored = dict(checkpoint["state_dict"]), checkpoint["averaging_state"]
        pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)

    # ---- internals ---------------------------------------------------------------------------------------------

    def _finish(self, trainer: Trainer, module: LightningModule) -> None:
        if not self.snapshots:
            return
        self._exchange(module, has_mean=True)
        estimate_statistics("UnlearnWeightAveraging", trainer, module)
        rank_zero_info(f"The module has the mean of its weights after updates {', '.join(map(str, self.snapshots))}.")

    def _exchange(self, module: LightningModule, has_mean: bool) -> None:
        if self._average_model is not None and has_mean != self._has_mean:
            self._swap_models(module)
            self._has_mean = has_mean

    def _check(self, trainer: Trainer) -> None:
        name = "UnlearnWeightAveraging"
        strategy(name, trainer, sharded=False, reason="copies whole weights")
        averages = [type(callback).__name__ for callback in callbacks_of(trainer, AVERAGING)]
        if len(averages) > 1:
            raise MisconfigurationException(f"A run has one average of its weights, but got {averages}. Keep one.")
        for objective in callbacks_of(trainer, UnlearnCallback):
            reason = objective.not_averaged
            if reason:
                raise MisconfigurationException(
                    f"{type(objective).__name__} {reason}, so a mean of its weights at several steps is not a model "
                    "that it makes. Leave UnlearnWeightAveraging out."
                )
