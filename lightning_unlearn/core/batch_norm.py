"""Batch normalization of batches with a single value per channel, which has no variance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm, _NormBase
from torch.utils.hooks import RemovableHandle

from lightning_unlearn.core.lightning import rank_zero_warn

__all__ = ["freeze_lone_rows", "has_batch_statistics", "lone_rows_frozen", "running_statistics"]

_FROZEN: WeakSet[nn.Module] = WeakSet()


def has_batch_statistics(layer: nn.Module) -> bool:
    """Whether a layer is batch normalization, or another normalization that keeps running statistics.

    Layers of other packages are known by a buffer ``running_var`` beside their weights; frozen batch normalization, of
    which all is buffers, has no statistics that move.
    """
    if isinstance(layer, _BatchNorm):
        return True
    keeps = any(name == "running_var" for name, _ in layer.named_buffers(recurse=False))
    return keeps and (isinstance(layer, _NormBase) or next(layer.parameters(recurse=False), None) is not None)


def running_statistics(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The buffers of those modules that keep running statistics."""
    return [buffer for child in modules if has_batch_statistics(child) for buffer in child.buffers(recurse=False)]


def freeze_lone_rows(module: nn.Module) -> list[RemovableHandle]:
    """Let batch normalization use its running statistics for a batch of a single row, as the last one of an epoch.

    In training mode, torch raises an error if a channel has a single value.

    Args:
        module: Any module; those without batch normalization, and compiled ones, stay as they are.

    Returns:
        Handles of hooks, to be removed.
    """
    if any(type(child).__name__ == "OptimizedModule" for child in module.modules()):
        return []
    handles: list[RemovableHandle] = []
    for child in module.modules():
        if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm) and child.track_running_stats:
            handles.append(child.register_forward_pre_hook(_freeze))
            handles.append(child.register_forward_hook(_thaw, always_call=True))
    return handles


@contextmanager
def lone_rows_frozen(module: nn.Module) -> Iterator[None]:
    """Run with `freeze_lone_rows`."""
    handles = freeze_lone_rows(module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Not closures: copies of the module take its hooks along.
def _freeze(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    (rows, *_) = inputs
    if norm.training and isinstance(rows, Tensor) and rows.dim() > 1 and rows.numel() == rows.shape[1]:
        rank_zero_warn(
            "A batch has a single row, of which batch normalization has no variance: it is normalized by the running "
            "statistics. Choose a batch size that leaves no single row at the end of an epoch."
        )
        norm.training = False
        _FROZEN.add(norm)


def _thaw(norm: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if norm in _FROZEN:
        _FROZEN.discard(norm)
        norm.training = True
