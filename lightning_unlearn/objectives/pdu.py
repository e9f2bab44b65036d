"""Primal-dual unlearning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.distributed import mean_over_ranks
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Batch, Score, causal_lm_nll
from lightning_unlearn.functional.objectives.pdu import pdu
from lightning_unlearn.objectives.objective import ForgetRetainObjective
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["PDU"]


class PDU(ForgetRetainObjective):
    r"""Primal-dual unlearning: flatten the predictions on forget rows while the retain NLL stays below a bound.

    $$\min_\theta \max_{\lambda \ge 0}\;
      w_f\, \mathbb{E}_t \big(\max_v z_{t,v} - \mathrm{mean}_v z_{t,v}\big)^2
      + \lambda\, (\mathcal{L}_{retain} - \varepsilon)$$

    After each optimizer step $\lambda \leftarrow \max(0, \lambda + \eta (\mathcal{L}_{retain} - \varepsilon))$: the
    weight of the retain rows rises while the bound is violated, and falls once it is met. $\lambda$ is logged as
    ``unlearn/dual``, saved in checkpoints, and the same on all processes. Since it is large, set ``gradient_clip_val``.

    Here $\lambda$ moves once per optimizer step, by the retain NLL over all processes and accumulated batches. The
    released code moves it on each micro-batch by the NLL of one process, forgets it on resume, and flattens the
    predictions of unsupervised tokens.

    Args:
        epsilon: Bound $\varepsilon$ on the mean retain NLL per token; a little above that of the original model. 0.3 on
            TOFU, 0.1 to 1.5 on MUSE.
        initial_dual: $\lambda$ at the start; 100 on TOFU, 50 on MUSE.
        dual_step_size: Step size $\eta$; 5 on TOFU, 1 on MUSE.
        warmup_epochs: Epochs in which $\lambda$ does not move; 5 on TOFU, 3 on MUSE.
        forget_weight: Weight of the forget term $w_f$.
        refusal_weight: Weight of a refusal to the forget questions.
        score: Reads logits off the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``epsilon`` or ``dual_step_size`` is not positive, if ``initial_dual``, ``warmup_epochs`` or a
            weight is negative, or if ``score`` gives no logits.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PDU(epsilon=0.5)], gradient_clip_val=1.0, logger=False, accelerator="cpu")

    References:
        Entesari et al., *Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models*,
        arXiv:2506.05314.
    """

    needs = Needs(logits=True)

    def __init__(
        self,
        epsilon: float = 0.3,
        initial_dual: float = 100.0,
        dual_step_size: float = 5.0,
        warmup_epochs: int = 5,
        forget_weight: float = 1.0,
        refusal_weight: float = 0.0,
        score: Score = causal_lm_nll,
        keep_reference: bool = False,
    ) -> None:
        self.initial_dual = at_least("initial_dual", initial_dual, 0)
        # The dual variable is the weight of the retain term.
        super().__init__(forget_weight, initial_dual, "nll", refusal_weight, score)
        self.keep_reference = keep_reference
        # Retain rows are read even where the dual variable is 0, or it could never rise again.
        self.needs = replace(self.needs, roles=tuple(dict.fromkeys((*self.needs.roles, "retain"))))
        self.epsilon = above("epsilon", epsilon, 0)
        self.dual_step_size = above("dual_step_size", dual_step_size, 0)
        self.warmup_epochs = at_least("warmup_epochs", warmup_epochs, 0)
        self._retain_nll: list[Tensor] = []
        self._global_step = 0
        self._loss_scale = 1.0

    @property
    def dual(self) -> float:
        """The dual variable as it is now."""
        assert not isinstance(self.retain_weight, Ramp)
        return self.retain_weight

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean over tokens of the flattening loss."""
        forget = readings["forget"]
        assert forget.predictions is not None
        return self.token_mean(pdu(forget.predictions.logits), forget.length)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The Lagrangian on one batch."""
        parts = super().step(module, batch)
        self._retain_nll.append(parts["retain"].detach())
        loss = parts["loss"] - self.dual * self.epsilon
        return {**parts, "loss": loss, "dual": loss.new_tensor(self.dual)}

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Start from the initial dual variable."""
        self.restore({"dual": self.initial_dual}, trainer, module)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue with the dual variable of the checkpoint."""
        self.retain_weight = state["dual"]
        self._retain_nll, self._global_step = [], trainer.global_step

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Remember the scale of the gradients, which falls if the scaler skips this step."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self._loss_scale = _loss_scale(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the dual variable after an optimizer step."""
        if trainer.global_step == self._global_step:
            return
        values, self._retain_nll, self._global_step = self._retain_nll, [], trainer.global_step
        skipped = _loss_scale(trainer) < self._loss_scale
        if skipped or trainer.current_epoch < self.warmup_epochs:
            return
        retain_nll = mean_over_ranks(torch.stack(values).mean()).item()
        self.retain_weight = max(0.0, self.dual + self.dual_step_size * (retain_nll - self.epsilon))

    def state_dict(self) -> dict[str, Any]:
        """The method's name and the dual variable."""
        return {**super().state_dict(), "dual": self.dual}


def _loss_scale(trainer: Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler.get_scale() if scaler is not None else 1.0
