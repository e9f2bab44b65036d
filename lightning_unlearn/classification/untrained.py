"""A module as it was before anyone trained it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_unlearn.core.reference import exchange

__all__ = ["ModuleInit", "check_untrained", "initialize", "untrained_values"]

ModuleInit = Callable[[], nn.Module]
"""Makes the module anew, with untrained weights."""


def check_untrained(
    method: str,
    trainer: Trainer,
    module: LightningModule,
    module_init: ModuleInit | None,
    chosen: Callable[[str], bool] = lambda name: True,
) -> None:
    """Raise where weights can't be initialized anew.

    Args:
        method: Who needs it.
        trainer: Runs it.
        module: The user's module.
        module_init: Makes the module anew, where that is given.
        chosen: Whether a parameter, by its name, is to be initialized.

    Raises:
        MisconfigurationException: If a chosen weight belongs to a layer without ``reset_parameters`` and there is no
            ``module_init``, or weights are sharded.
    """
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise MisconfigurationException(
            f"{method} initializes whole layers, which ModelParallelStrategy shards. Use one device or strategy='ddp'."
        )
    if module_init is not None:
        return
    for name, child in module.named_modules():
        own = (f"{name}.{n}" if name else n for n, _ in child.named_parameters(recurse=False))
        if any(chosen(n) for n in own) and not _resets(child):
            raise MisconfigurationException(
                f"{method} needs untrained weights, but {name or 'the module'!r} ({type(child).__name__}) has weights "
                "and no reset_parameters() to initialize them. Add it, or pass module_init, a function that makes the "
                "module anew."
            )


@torch.no_grad()
def untrained_values(module: nn.Module, seed: int, module_init: ModuleInit | None = None) -> dict[str, Tensor]:
    """What weights and buffers of a module would be had it just been made; the module stays as it is.

    Args:
        module: Without ``module_init``, every layer of it that has weights has ``reset_parameters``.
        seed: Seed of the weights.
        module_init: Makes the module anew.

    Raises:
        MisconfigurationException: If ``module_init`` makes another module.
    """
    values = {k: v.detach().clone() for k, v in _tensors(module).items()}
    devices = sorted({v.device.index for v in values.values() if v.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        if module_init is not None:
            return _made(module_init, values)
        for child in reversed(list(module.modules())):  # as layers are made: a block may set what its parts have drawn
            if _resets(child):
                _reset(child)
    exchange(module, values)
    return values


@torch.no_grad()
def initialize(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into the weights and buffers of the same names."""
    tensors = _tensors(module)
    for name, value in values.items():
        tensors[name].copy_(value)


def _made(module_init: ModuleInit, like: dict[str, Tensor]) -> dict[str, Tensor]:
    made = _tensors(module_init())
    odd = [k for k, v in like.items() if k not in made or made[k].shape != v.shape]
    if odd:
        raise MisconfigurationException(
            f"module_init makes another module than the one that is trained: {len(odd)} weights are missing or have "
            f"another shape, such as {odd[0]!r}. Let it return the same class, made with the same arguments."
        )
    return {k: made[k].detach().to(v) for k, v in like.items()}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _resets(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in _RESETS)


def _reset(module: nn.Module) -> None:
    getattr(module, next(name for name in _RESETS if hasattr(module, name)))()


_RESETS = ("reset_parameters", "_reset_parameters")  # torch's attention and transformers have the second
