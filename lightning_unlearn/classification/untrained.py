"""Untrained weights of a module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import strategy
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.reference import exchange

__all__ = ["ModuleInit", "buffers_without_reset", "check_untrained", "initialize", "untrained_values"]

ModuleInit = Callable[[], nn.Module]
"""Makes the module with untrained weights."""


def check_untrained(
    method: str,
    trainer: Trainer,
    module: LightningModule,
    module_init: ModuleInit | None,
    chosen: Callable[[str], bool] = lambda name: True,
) -> None:
    """Reject a module whose weights can't be reset.

    Args:
        method: Name of the method, for errors.
        trainer: Trainer of the run.
        module: The user's module.
        module_init: Makes an untrained module, if the user gives it.
        chosen: Whether the parameter of a given name is to be reset.

    Raises:
        MisconfigurationException: If a chosen weight belongs to a layer without ``reset_parameters`` and there is no
            ``module_init``, or weights are sharded.
    """
    strategy(method, trainer, sharded=False, reason="initializes whole layers")
    if module_init is not None:
        return
    for name, child in module.named_modules():
        own = (f"{name}.{n}" if name else n for n, _ in child.named_parameters(recurse=False))
        if any(chosen(n) for n in own) and not _resets(child):
            raise MisconfigurationException(
                f"{method} needs untrained weights, but {name or 'the module'!r} ({type(child).__name__}) has weights "
                "and no reset_parameters() to initialize them. Add it, or pass module_init, a function that makes an "
                "untrained module."
            )


@torch.no_grad()
def untrained_values(
    module: nn.Module,
    seed: int,
    module_init: ModuleInit | None = None,
    chosen: Callable[[str], bool] = lambda name: True,
) -> dict[str, Tensor]:
    """Weights and buffers of a module as if it had just been made; the module itself is not changed.

    Args:
        module: Without ``module_init``, its layers with weights have ``reset_parameters``.
        seed: Seed of the weights.
        module_init: Makes an untrained module.
        chosen: Whether the parameter of a given name has to be reset.

    Raises:
        MisconfigurationException: If ``module_init`` makes another module, or ``reset_parameters`` leaves a chosen
            parameter as it is.
    """
    values = {k: v.detach().clone() for k, v in _tensors(module).items()}
    devices = sorted({v.device.index for v in values.values() if v.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        if module_init is not None:
            return _initial_values(module_init(), values)
        parameters = {name: p for name, p in module.named_parameters() if p.is_floating_point() or p.is_complex()}
        for parameter in parameters.values():
            parameter.fill_(torch.nan)
        try:
            # In the order in which layers are made: a block may overwrite what its parts have drawn.
            for child in reversed(list(module.modules())):
                if _resets(child):
                    _reset(child)
            left = [name for name, parameter in parameters.items() if bool(parameter.isnan().any())]
        finally:
            exchange(module, values)
    for name in left:
        values[name] = _tensors(module)[name].detach().clone()
    if any(map(chosen, left)):
        raise MisconfigurationException(
            f"reset_parameters() does not initialize {next(filter(chosen, left))!r}, which would stay as it was "
            "trained. So it is with layers under torch.nn.utils.weight_norm and torch.nn.utils.prune. Pass "
            "module_init, a function that makes an untrained module."
        )
    return values


def buffers_without_reset(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers of submodules that have no ``reset_parameters``, by name."""
    return {
        f"{path}.{name}" if path else name: buffer.detach().clone()
        for path, child in module.named_modules()
        for name, buffer in child._buffers.items()
        if buffer is not None and not _resets(child)
    }


@torch.no_grad()
def initialize(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into the weights and buffers of the same names."""
    tensors = _tensors(module)
    for name, value in values.items():
        tensors[name].copy_(value)


def _initial_values(untrained: nn.Module, like: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = _tensors(untrained)
    odd = [k for k, v in like.items() if k not in tensors or tensors[k].shape != v.shape]
    if odd:
        raise MisconfigurationException(
            f"module_init makes another module than the one that is trained: {len(odd)} weights are missing or have "
            f"another shape, such as {odd[0]!r}. Let it return the same class, made with the same arguments."
        )
    return {k: tensors[k].detach().to(v) for k, v in like.items()}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _resets(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in _RESETS)


def _reset(module: nn.Module) -> None:
    getattr(module, next(name for name in _RESETS if hasattr(module, name)))()


_RESETS = ("reset_parameters", "_reset_parameters")  # torch's attention and transformers have the second
