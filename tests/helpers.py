"""Trainers, recorders and comparisons of weights that tests of every room share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def trainer(*callbacks: Any, **options: Any) -> L.Trainer:
    """A Trainer of one epoch on the CPU that writes nothing."""
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))


def save_resumable(run: L.Trainer, path: Path) -> None:
    """A checkpoint, saved when the run has ended, that it can be resumed from."""
    for callback in run.callbacks:  # type: ignore[attr-defined]
        callback.keep_reference = True
    run.save_checkpoint(path)


def weights(module: nn.Module) -> Tensor:
    """A copy of all parameters, as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor as integers: NaN equals itself, and 0 is not -0."""
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])


def same(a: nn.Module | Mapping[str, Tensor], b: nn.Module | Mapping[str, Tensor]) -> bool:
    """Whether two modules or states have the same names, types, shapes and bits."""
    a, b = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    kinds = [{name: (t.dtype, t.shape) for name, t in state.items()} for state in (a, b)]
    return kinds[0] == kinds[1] and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


class Recorder(L.Callback):
    """Calls functions at hooks of a run, and keeps in ``values`` what they return.

    Example:
        >>> recorder = Recorder(on_train_batch_end=lambda trainer, module, *_: trainer.global_step)
    """

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        self.values: list[Any] = []
        for hook, function in hooks.items():
            if not hasattr(L.Callback, hook):
                raise AttributeError(f"Callbacks have no hook {hook}.")
            setattr(self, hook, lambda *arguments, function=function: self._keep(function(*arguments)))

    def _keep(self, value: Any) -> None:
        if value is not None:
            self.values.append(value)


def logged(name: str) -> Recorder:
    """Records a logged number after each batch."""
    return Recorder(on_train_batch_end=lambda trainer, *_: trainer.callback_metrics[name].item())
