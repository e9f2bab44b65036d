"""Weights that must not move during a run, and their starting values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.functional.saliency.bits import apply_mask_

__all__ = ["FrozenWeights"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Frozen(NamedTuple):
    """A parameter with weights that must not move; tensors are of the part that this process holds.

    Args:
        name: Its name in the module.
        parameter: The parameter.
        live: Boolean, ``True`` where a weight may move; ``None`` where none may.
        value: The starting values of frozen weights, 0 at the others.
    """

    name: str
    parameter: nn.Parameter
    live: Tensor | None
    value: Tensor

    def put_into(self, tensor: Tensor) -> Tensor:
        """Write the frozen values into a tensor like the parameter."""
        value = self.value.to(tensor.device)
        return tensor.copy_(value) if self.live is None else apply_mask_(tensor, self.live.to(tensor.device), value)


class FrozenWeights:
    """The weights that a mask freezes. It holds a copy of each parameter that has some.

    Args:
        parameters: The parameters that train, by name.
        masks: For some of them the part of the mask that this process holds; all others are frozen.
        counted: For these, how many weights may move on all processes, and how many there are.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        counted: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self._frozen: list[_Frozen] = []
        for name, parameter in (parameters or {}).items():
            live, total = (counted or {}).get(name, (0, parameter.numel()))
            if live == total:
                continue
            value = local_tensor(parameter.detach()).clone(memory_format=torch.contiguous_format)
            mask = (masks or {})[name] if live else None
            if mask is not None:
                apply_mask_(value, ~mask)
            self._frozen.append(_Frozen(name, parameter, mask, value))

    @torch.no_grad()
    def restore(self, others: Mapping[str, nn.Parameter] | None = None) -> None:
        """Put the starting values back.

        Args:
            others: Parameters of a copy of the module, by name; by default the module's own.
        """
        for frozen in self._frozen:
            frozen.put_into(local_tensor(frozen.parameter if others is None else others[frozen.name]))

    @torch.no_grad()
    def restore_saved(self, state: dict[str, Any]) -> None:
        """Put the starting values into a state dict; the live weights stay as they are. Shards are left alone."""
        for frozen in self._frozen:
            saved = state.get(frozen.name)
            if not isinstance(saved, Tensor) or isinstance(saved, DTensor):
                continue
            if (saved.dtype, saved.shape) == (frozen.value.dtype, frozen.value.shape):
                right = frozen.put_into(saved.detach().clone(memory_format=torch.contiguous_format))
                if not _same_bits(saved, right):
                    state[frozen.name] = right

    @torch.no_grad()
    def moved(self) -> list[str]:
        """Names of parameters whose frozen weights are not what they were, on this process."""
        now = ((frozen, local_tensor(frozen.parameter)) for frozen in self._frozen)
        return [
            frozen.name
            for frozen, tensor in now
            if not _same_bits(tensor, frozen.put_into(tensor.clone(memory_format=torch.contiguous_format)))
        ]

    def clear_gradients(self) -> None:
        """Clear the gradients of frozen weights."""
        for _, parameter, live, _ in self._frozen:
            if parameter.grad is None:
                continue
            if live is None:
                # Not None: a parameter without optimizer state would make a sharded checkpoint unreadable.
                local_tensor(parameter.grad).zero_()
            else:
                apply_mask_(local_tensor(parameter.grad), live)

    def clear_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Clear the optimizer state of frozen weights: old momentum would be clipped and logged as if they moved."""
        for _, parameter, live, _ in self._frozen:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    if live is None:
                        local_tensor(value).zero_()
                    else:
                        apply_mask_(local_tensor(value), live)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    kind = _INTEGERS[b.element_size()]
    return torch.equal(a.detach().contiguous().view(kind), b.view(kind))
