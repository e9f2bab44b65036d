"""Base class of objectives that train low-rank adapters on the UNet."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.diffusion.engine.adapters import LowRankAdapters
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image
from lightning_unlearn.diffusion.objective import DiffusionObjective

__all__ = ["AdapterObjective"]


class AdapterObjective(DiffusionObjective):
    """Trains adapters only, and none of the module's own weights.

    They are attached before the optimizer is created. With ``merge`` they become part of the weights when training ends
    and in each checkpoint, which therefore loads without them; a resumed run separates them again. After a crash the
    module is as it was before.

    A subclass supplies ``make_adapters`` and ``step``.

    Args:
        merge: Whether the adapters become part of the weights.
        seed: Seed of the adapters, the noise and the noise levels.

    Raises:
        MisconfigurationException: If the module's optimizer does not take the adapters.
    """

    needs = Needs()
    not_averaged = "trains adapters that it merges into the weights of the module"

    def __init__(self, merge: bool = True, seed: int = 0) -> None:
        super().__init__(seed)
        self.merge = merge
        if merge:
            self.private = (*self.private, "base", "adapters")
        self.sets: dict[str, LowRankAdapters] = {}
        """The adapters by name, since training was set up."""
        self._base: dict[str, Tensor] = {}
        self._frozen: list[nn.Parameter] = []
        self._hooks: list[Any] = []

    @abstractmethod
    def make_adapters(self, model: TextToImage) -> dict[str, LowRankAdapters]:
        """Attach the adapters; all sets are on the same layers."""

    def merged(self, path: str) -> Tensor:
        """The weight of a layer with the adapters in it."""
        weight = self.layers[path].weight.detach()
        return weight + sum(s.adapters[path].change() for s in self.sets.values()).detach().to(weight)  # type: ignore[union-attr]

    @property
    def layers(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """The layers with adapters, by name."""
        return next(iter(self.sets.values())).layers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the adapters, and freeze all else."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._frozen = [p for p in pl_module.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._base = {}
        self.sets = self.make_adapters(as_text_to_image(pl_module))
        if self.merge:
            self._hooks = [
                layer.register_state_dict_post_hook(self._merging(path)) for path, layer in self.layers.items()
            ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the adapters train."""
        trained = {id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        adapters = [a for s in self.sets.values() for a in s.adapters.values()]
        if not all(id(p) in trained for adapter in adapters for p in adapter.parameters()):
            raise MisconfigurationException(
                f"The optimizer of {type(pl_module).__name__} does not take the adapters, so nothing would be erased. "
                "Let configure_optimizers return one over [p for p in self.parameters() if p.requires_grad]."
            )
        super().on_train_start(trainer, pl_module)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Separate the adapters from the weights."""
        super().restore(state, trainer, module)
        if state["adapters"].keys() != self.sets.keys():
            raise MisconfigurationException(
                f"The checkpoint is of a run with adapters {sorted(state['adapters'])}, but this one has "
                f"{sorted(self.sets)}. Resume with the same arguments."
            )
        for name, values in state["adapters"].items():
            self.sets[name].load_state_dict(values)
        self.put_weights(state["base"])

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the adapters."""
        if self.merge:
            self._base = self.weights()
            self._unhook()
            self.put_weights({path: self.merged(path) for path in self.layers})
        self._remove()

    def release(self) -> None:
        """Take the adapters off, and let the module's own weights train again."""
        super().release()
        self._unhook()
        self._remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def state_dict(self) -> dict[str, Any]:
        """The adapters, and where they are merged the weights without them."""
        if not self.sets:
            return super().state_dict()
        base = (self._base or self.weights()) if self.merge else {}
        adapters = {name: adapters.state_dict() for name, adapters in self.sets.items()}
        return {**super().state_dict(), "adapters": adapters, "base": base}

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights of the layers on the CPU, without the adapters."""
        return {path: layer.weight.detach().to("cpu", copy=True) for path, layer in self.layers.items()}

    @torch.no_grad()
    def put_weights(self, weights: dict[str, Tensor]) -> None:
        """Give layers other weights."""
        for path, weight in weights.items():
            self.layers[path].weight.copy_(weight)

    def _merging(self, path: str) -> Any:
        def hook(_: Any, state: dict[str, Tensor], prefix: str, __: Any) -> None:
            state[f"{prefix}weight"] = self.merged(path)

        return hook

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _remove(self) -> None:
        for adapters in self.sets.values():
            adapters.remove()
