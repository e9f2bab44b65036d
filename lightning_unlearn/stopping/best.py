"""Copy of the weights of the best step of a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.distributed import full_tensor, load_full_tensor, local_tensor
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.reference import reshard

__all__ = ["BestWeights"]


class BestWeights:
    """A copy of the weights that train and of the buffers; of sharded ones each process keeps its part.

    Args:
        device: Where the copy is kept, such as ``"cpu"``; by default where the weights are.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self._values: dict[str, Tensor] = {}
        self._places: dict[str, Tensor] = {}  # sharded weights, which tell what a local value is a part of

    def __bool__(self) -> bool:
        return bool(self._values)

    @torch.no_grad()
    def take(self, module: nn.Module) -> None:
        """Copy the weights as they are now."""
        reshard(module)  # or the copy would be of what a forward pass has gathered
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._keep(name, parameter)
        for name, buffer in module.named_buffers():
            self._keep(name, buffer)

    def follow(self, module: nn.Module) -> None:
        """Take in weights that train only now, such as layers that a schedule thaws: they have not moved yet."""
        for name, parameter in module.named_parameters() if self else ():
            if parameter.requires_grad and name not in self._values:
                self._keep(name, parameter)

    def _keep(self, name: str, tensor: Tensor) -> None:
        value = local_tensor(tensor.detach())
        if isinstance(tensor, DTensor):
            self._places[name] = tensor
        if name in self._values and self._values[name].shape == value.shape:
            self._values[name].copy_(value)
        else:
            self._values[name] = value.to(self.device or value.device, copy=True)

    @torch.no_grad()
    def give_back(self, module: nn.Module) -> None:
        """Put the copy in place of the weights, and let go of it.

        Raises:
            MisconfigurationException: If the module no longer has weights of these names.
        """
        reshard(module)
        tensors = _tensors(module)
        gone = self._values.keys() - tensors.keys()
        if gone:
            raise MisconfigurationException(
                f"The weights of the best step can't be put back: {len(gone)} of them, such as {min(gone)!r}, have "
                "other names in the module by now, as pruning and parametrizations give them in the midst of a run. "
                "Change the module before fit."
            )
        for name, value in self._values.items():
            local_tensor(tensors[name]).copy_(value)
        self._values, self._places = {}, {}

    def state_dict(self) -> dict[str, Tensor]:
        """The whole tensors on the CPU. A collective call where they are sharded."""
        return {name: full_tensor(self._whole(name, value)) for name, value in self._values.items()}

    def load_state_dict(self, state: dict[str, Tensor], module: nn.Module) -> None:
        """Take over what `state_dict` gave."""
        tensors = _tensors(module)
        for name, value in state.items():
            whole = tensors[name].detach().clone()
            load_full_tensor(whole, value)
            self._keep(name, whole)

    def _whole(self, name: str, value: Tensor) -> Tensor:
        """A local value as a part of the whole."""
        tensor = self._places.get(name)
        if not isinstance(tensor, DTensor):
            return value
        own, mesh, placements = value.to(local_tensor(tensor).device), tensor.device_mesh, tensor.placements
        return DTensor.from_local(own, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())
