"""Negation of a task vector."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.accumulation import is_last_batch
from lightning_unlearn.core.callback import Needs, UnlearnCallback
from lightning_unlearn.core.checks import above
from lightning_unlearn.core.distributed import all_true, full_tensor, load_full_tensor, local_tensor
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_unlearn.core.reference import reshard
from lightning_unlearn.core.scores import Batch, Score, causal_lm_nll
from lightning_unlearn.functional.objectives.task_vector import negate_task_vector

__all__ = ["TaskVector"]


class TaskVector(UnlearnCallback):
    r"""Task vector negation: fine-tune on the forget rows, then subtract the change from the starting weights.

    $$\theta = \theta_0 - \alpha (\theta_{ft} - \theta_0)$$

    The run fine-tunes on the forget rows, with their mean NLL per token, to $\theta_{ft}$. After the last step, weights
    that train are set by the formula; frozen ones stay. Buffers, such as batch normalization statistics, are restored,
    since a variance can't be extrapolated. With LoRA the formula holds for the merged weights: $\theta_{ft} - \theta_0$
    is the adapter's product $BA$, so $B$ becomes $-\alpha B$.

    The edit comes at the end of the last batch, before the last epoch is validated, measured and saved:
    ``ModelCheckpoint`` runs after all other callbacks, and saves at the end of a batch, a validation or an epoch, but
    not again once training has ended. So its last file, ``last.ckpt``, ``UnlearnMonitor`` and ``save_pretrained`` all
    see the edited model. Earlier files hold intermediate fine-tuned weights. A run that is stopped early
    (``EarlyStopping``, ``max_time``) is edited when training ends, after its last file was written; a warning says so.

    Checkpoints hold the starting weights, and after the edit also the fine-tuned ones, so that a run that is resumed
    for more epochs continues fine-tuning. This takes memory for up to two more copies of the weights that train.

    Args:
        alpha: How far to go $\alpha > 0$. Tune it on a retain set: 1 in the code released with MUSE.
        score: Reads likelihoods off the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``alpha`` is not positive.
        MisconfigurationException: If adapters train beside other weights, or were trained before.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[TaskVector(alpha=1.0)], logger=False, accelerator="cpu")

    References:
        Ilharco et al., *Editing Models with Task Arithmetic*, arXiv:2212.04089.
    """

    needs = Needs(roles=("forget",), snapshot=True)
    inseparable = "learns the forget rows, and goes the other way only after its last step"
    not_averaged = "goes the other way from the start after its last step"

    private = ("snapshot", "caches", "finetuned")

    def __init__(self, alpha: float = 1.0, score: Score = causal_lm_nll, keep_reference: bool = False) -> None:
        super().__init__(score, reference="snapshot")
        self.keep_reference = keep_reference
        self.alpha = above("alpha", alpha, 0)
        self._finetuned: dict[str, Tensor] | None = None

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Fine-tuning on the forget rows of one batch."""
        (forget,) = self.read(module, [batch["forget"]])
        loss = self.token_mean(forget.nll, forget.length)
        return {"loss": loss, "forget_nll": loss}

    def edit(self, module: LightningModule) -> None:
        """Put the weights of the formula in place of the fine-tuned ones.

        Args:
            module: The user's module.
        """
        live = _movable(module)
        self._finetuned = {name: full_tensor(value) for name, value in live.items()}
        finetuned = {name: local_tensor(value.detach()) for name, value in live.items()}
        if _adapters(module):
            # The product BA starts at 0 through B alone, so it is scaled there, and A stays.
            start = {k: torch.zeros_like(v) if _IS_B.search(k) else v.clone() for k, v in finetuned.items()}
        else:
            assert self.snapshot is not None
            start = {name: local_tensor(self.snapshot.values[name]) for name in live}
        edited = negate_task_vector(start, finetuned, alpha=self.alpha)
        edited |= {name: start[name] for name, _ in module.named_buffers() if name in start}
        reshard(module)
        for name, value in edited.items():
            finetuned[name].copy_(value)

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Check the adapters that are to train."""
        self._finetuned = None
        _check_adapters(module)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue from the fine-tuned weights, which an earlier run replaced by the edited ones at its end."""
        self._finetuned = None
        if state["finetuned"] is not None:
            reshard(module)
            for name, tensor in _movable(module).items():
                load_full_tensor(tensor, state["finetuned"][name])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Edit after the last batch, before anything measures or saves the outcome."""
        if is_last_batch(trainer, batch_idx):
            self.edit(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Edit a run that something else has stopped."""
        if self._finetuned is not None:
            return
        self.edit(pl_module)
        rank_zero_warn(
            "The run stopped before max_epochs or max_steps, so TaskVector edited the weights after the last "
            "measurement and the last checkpoint. The module has the edited weights: trainer.save_checkpoint(...) or "
            "save_pretrained writes them."
        )

    def state_dict(self) -> dict[str, Any]:
        """The method's name, the starting weights, and the fine-tuned ones if they are not in the module any more."""
        return {**super().state_dict(), "finetuned": self._finetuned}


_IS_ADAPTER = re.compile(r"\.lora_(embedding_)?[AB]\.")
_IS_B = re.compile(r"\.lora_(embedding_)?B\.")


def _movable(module: nn.Module) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return parameters if _adapters(module) else parameters | dict(module.named_buffers())


def _adapters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad and _IS_ADAPTER.search(name)}


def _check_adapters(module: nn.Module) -> None:
    adapters = _adapters(module)
    if not adapters:
        return
    others = [name for name, p in module.named_parameters() if p.requires_grad and name not in adapters]
    if others:
        raise MisconfigurationException(
            f"TaskVector scales the product of an adapter's two matrices, but {others[0]!r} trains beside them. Train "
            "plain LoRA adapters only (no DoRA, biases or modules_to_save), or all weights without adapters."
        )
    trained = torch.stack([local_tensor(p.detach()).any() for name, p in adapters.items() if _IS_B.search(name)])
    if not all_true(~trained.any()):
        raise MisconfigurationException(
            "TaskVector goes away from the original model, but its adapters have been trained already, so it can't be "
            "reached by scaling them. Merge them first (save_pretrained), and start from the merged model."
        )
