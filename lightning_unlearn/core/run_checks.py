"""Checks of an unlearning run: before its first step, of each batch, and after its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import trainer_optimizes
from lightning_unlearn.core.distributed import all_true, checksums
from lightning_unlearn.core.lightning import (
    MODEL_PARALLEL,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)

__all__ = [
    "check_date",
    "check_moved",
    "check_optimizers",
    "check_roles",
    "check_sharded",
    "never_started",
]

_MAKERS = {
    "idk": "data module that gives refusals to the forget questions, such as LanguageDataModule",
    "alternate": "data module that gives alternate answers, such as LanguageDataModule after generate_alternates",
}


def check_optimizers(method: str, trainer: Trainer, module: LightningModule) -> None:
    """Refuse a run that can't move a weight, once the module's own hooks have been called.

    Raises:
        MisconfigurationException: If the module optimizes manually, or no optimizer holds a weight of it that trains.
    """
    trainer_optimizes(method, module)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    optimized = {id(parameter) for group in groups for parameter in group["params"]}
    own = [parameter for parameter in module.parameters() if id(parameter) in optimized]
    reason = None
    if not optimized or not any(parameter.numel() for group in groups for parameter in group["params"]):
        reason = "configure_optimizers gives no optimizer"
    elif not own:
        reason = "its optimizer holds no weight of the module"
    elif not any(parameter.requires_grad for parameter in own):
        reason = "no weight that its optimizer holds requires a gradient"
    if reason is not None:
        raise MisconfigurationException(
            f"{method} would move no weight of {type(module).__name__}: {reason}. Return an optimizer over "
            "self.parameters() from configure_optimizers."
        )


def check_sharded(trainer: Trainer, module: LightningModule) -> None:
    """Refuse a module that stays whole under ``ModelParallelStrategy``.

    Raises:
        MisconfigurationException: If several processes would each train a model of their own.
    """
    if not isinstance(trainer.strategy, MODEL_PARALLEL) or trainer.world_size == 1:
        return
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        raise MisconfigurationException(
            f"ModelParallelStrategy leaves it to the module to share its weights among {trainer.world_size} "
            f"processes, but {type(module).__name__} is not taken apart: each process would train a model of its "
            "own. Apply fully_shard or parallelize_module in configure_model, or use strategy='ddp'. LitCausalLM "
            "shards itself under ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1)."
        )


def check_date(before: str | None, now: str | None) -> None:
    """Refuse to resume a run with another date in its prompts.

    Args:
        before: Date that the chat template wrote when the run started.
        now: Date that it writes now.

    Raises:
        MisconfigurationException: If the dates differ.
    """
    if before != now:
        raise MisconfigurationException(
            f"The chat template writes the date into every prompt: the run was started with {before}, and its rows "
            f"are now written with {now}. Write them with PromptFormat(date={before!r}), or pass the data module "
            "itself to fit, which takes over the date of the checkpoint."
        )


def check_roles(method: str, roles: Sequence[str], batch: Any) -> None:
    """Refuse a training batch that lacks rows of a role.

    Raises:
        MisconfigurationException: If a role has no rows.
    """
    missing = [role for role in roles if not isinstance(batch, dict) or batch.get(role) is None]
    ended = [role for role in missing if isinstance(batch, dict) and role in batch]
    if ended:
        raise MisconfigurationException(
            f"{method} needs {ended} in every training batch, but that loader has ended before the others, as in "
            "CombinedLoader(..., mode='max_size'). Use mode 'max_size_cycle' or 'min_size'."
        )
    if missing:
        got = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise MisconfigurationException(
            f"{method} needs {missing} in every training batch, but got {got}. Pass "
            f"trainer.fit(module, {{{', '.join(f'{role!r}: ...' for role in roles)}}}) or a "
            f"{next((_MAKERS[role] for role in missing if role in _MAKERS), 'ForgetRetainDataModule')}."
        )


def check_moved(
    method: str, trainer: Trainer, module: LightningModule, before: Mapping[str, float], updates: int | None
) -> None:
    """Refuse a run that made no update, and warn of one that changed no weight. A collective call.

    Args:
        method: Name of the method.
        trainer: Trainer of the run.
        module: The module after the run.
        before: Checksums of its weights before the run.
        updates: Number of updates; ``None`` for an edit, which makes none.

    Raises:
        MisconfigurationException: If there was no update.
    """
    alike = torch.tensor(checksums(module) == before, device=trainer.strategy.root_device)
    unmoved = all_true(alike)
    if updates is None:
        if unmoved:
            rank_zero_warn(f"{method} has changed no weight: the module that went in is the module that came out.")
        return
    if updates == 0:
        raise MisconfigurationException(
            f"{method} ran 0 updates: the module that went in is the module that came out. Check that the forget "
            "loader is not empty, that max_epochs, max_steps and limit_train_batches are not 0, that the module's "
            "training_step returns a loss, and that nothing else replaces it."
        )
    if unmoved:
        rank_zero_warn(
            f"{method} made {updates} updates, and no weight has changed: the module that went in is the module that "
            "came out. Check the learning rate, that weights require gradients and are in the optimizer, and that the "
            "weight of the forget term is not 0."
        )


def never_started(method: str, trainer: Trainer) -> MisconfigurationException:
    """The error of a run whose training did not start."""
    return MisconfigurationException(
        f"{method} ran 0 updates: training did not start, since the run was complete already (epoch "
        f"{trainer.current_epoch}, max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}) or has no "
        "batches. Raise max_epochs or max_steps to go on, or use a new Trainer for a new run; check that the "
        "forget loader is not empty and limit_train_batches is not 0."
    )
