"""Freezing of all parameters except those of a few layers."""

from __future__ import annotations

import re

from torch import nn

from lightning_unlearn.core.layers import find_layer, stripped
from lightning_unlearn.core.lightning import MisconfigurationException

__all__ = ["FrozenParameters", "named_parameters"]

_OUTPUTS = r"down_proj|dense_4h_to_h|mlp\.c_proj|fc2|fc_out|w2|mixer\.out_proj"


class FrozenParameters:
    """Parameters that are frozen during a run, so that only those of a few layers train.

    Args:
        layer: Name or number of a decoder block, see `find_layer`.
        trainable: Regular expression that is found in the names of the parameters that train; by default they are the
            last projection of the MLP in that block and in the two before it.
    """

    def __init__(self, layer: str | int, trainable: str | None) -> None:
        self.layer, self.trainable = layer, trainable
        self._names: set[str] = set()

    def choose(self, module: nn.Module) -> None:
        """Find the parameters to freeze among those that train.

        Raises:
            MisconfigurationException: If no parameter would train, or there is no default.
        """
        pattern = self._pattern(find_layer(module, self.layer)[0])
        training = {name: p for name, p in named_parameters(module).items() if p.requires_grad}
        frozen = {name for name in training if not re.search(pattern, name)}
        if len(frozen) == len(training):
            names = ", ".join(list(training)[:8]) or "none"
            raise MisconfigurationException(
                f"trainable={self.trainable!r} (as a regular expression: {pattern!r}) is found in the name of no "
                f"parameter that trains. There are: {names}{' ...' if len(training) > 8 else ''}."
            )
        self._names = frozen

    def freeze(self, module: nn.Module) -> None:
        """Freeze the chosen parameters."""
        self._set_trains(module, False)

    def release(self, module: nn.Module) -> None:
        """Let them train again, and forget them."""
        self._set_trains(module, True)
        self._names = set()

    def _set_trains(self, module: nn.Module, trains: bool) -> None:
        for name, parameter in named_parameters(module).items():
            if name in self._names:
                parameter.requires_grad_(trains)

    def _pattern(self, layer: str) -> str:
        if self.trainable is not None:
            return self.trainable
        stem, _, number = layer.rpartition(".")
        if not number.isdigit():
            raise MisconfigurationException(
                f"layer={self.layer!r} is {layer!r}, which is not one of a numbered list of blocks, so there is no "
                "default for trainable. Give a regular expression of the parameters that are to train."
            )
        blocks = "|".join(str(i) for i in range(max(0, int(number) - 2), int(number) + 1))
        return rf"^{re.escape(stem)}\.({blocks})\.(.*\.)?({_OUTPUTS})(_bias)?(\.|$)"


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name; the names are those without wrappers such as ``_orig_mod.``."""
    return {stripped(name): parameter for name, parameter in module.named_parameters()}
