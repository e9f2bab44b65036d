"""Transfer of batches to the device through the hooks of the module and its data module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn

from lightning_unlearn.core.lightning import MODULES, LightningModule, Trainer, move_data_to_device, overrides

__all__ = ["Patches", "attached_trainer", "own_transfer_hooks", "patch_transfer", "transferred"]

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class Patches:
    """Attributes of objects that are replaced during a run."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of one object."""
        self._replaced.append((owner, name, value, vars(owner).get(name, self)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Give all of them back, the last one first, except what was replaced again since."""
        while self._replaced:
            owner, name, value, before = self._replaced.pop()
            if vars(owner).get(name) is not value:
                continue
            if before is self:
                vars(owner).pop(name)
            else:
                setattr(owner, name, before)


def attached_trainer(module: nn.Module) -> Trainer | None:
    """The Trainer that a module is attached to, unless it is gone."""
    trainer = vars(module).get("_trainer")
    try:
        return trainer if trainer is None or isinstance(trainer.callbacks, list) else None
    except ReferenceError:  # a module holds its Trainer weakly
        return None


def transferred(module: nn.Module, batch: Any, device: torch.device | None = None) -> Any:
    """A batch on the device, through the transfer hooks that a batch of training goes through.

    Args:
        module: The user's module; one that is no LightningModule has no hooks.
        batch: Rows as a loader yields them.
        device: Where to; by default where the module is.
    """
    if not isinstance(module, MODULES):
        first = next(module.parameters(), torch.empty(0))
        return move_data_to_device(batch, device or first.device)
    data = getattr(attached_trainer(module), "datamodule", None)
    before, move, after = (
        getattr(data if data is not None and overrides(data, hook, "LightningDataModule") else module, hook)
        for hook in _HOOKS
    )
    return after(move(before(batch, 0), device or module.device, 0), 0)


def own_transfer_hooks(trainer: Trainer, module: LightningModule) -> list[tuple[Any, str]]:
    """The transfer hooks that a module or its data module overrides, each with its owner."""
    data = getattr(trainer, "datamodule", None)
    owners = [(module, "LightningModule"), (data, "LightningDataModule")]
    return [(owner, h) for owner, kind in owners for h in _HOOKS if owner is not None and overrides(owner, h, kind)]


def patch_transfer(patches: Patches, trainer: Trainer, module: LightningModule, roles: Sequence[str]) -> None:
    """Let transfer hooks see the rows of each role as they see a batch of training, not the dict of roles."""
    for owner, hook in own_transfer_hooks(trainer, module):
        patches.set(owner, hook, _by_role(getattr(owner, hook), roles))


def _by_role(hook: Callable[..., Any], roles: Sequence[str]) -> Callable[..., Any]:
    @wraps(hook)  # by which Lightning still finds whether the hook is overridden
    def by_role(batch: Any, *arguments: Any, **options: Any) -> Any:
        if not (roles and isinstance(batch, Mapping) and all(role in batch for role in roles)):
            return hook(batch, *arguments, **options)
        return {
            role: rows if rows is None else hook(rows, *arguments, **options)  # None: a loader that is exhausted
            for role, rows in batch.items()
        }

    return by_role
