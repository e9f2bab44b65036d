"""Adapter that calls a module's ``reconstruct`` with the arguments it supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from torch import Tensor, nn

from lightning_unlearn.reconstruction.operators import LinearOperator, MultiCoilMRI

__all__ = ["Reconstruct", "Reconstructor"]

Reconstruct = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""Gives the images ``(B, H, W)`` of a batch by a module."""


class Reconstructor:
    """Adapter to a module with a method ``reconstruct(batch) -> (B, H, W)``.

    Of the optional arguments ``mode=``, ``steps=`` and ``key=``, as in
    [`LitReconstruction`][lightning_unlearn.LitReconstruction], it uses those that the method takes.

    Args:
        module: The module.
        base: Gives the reconstructions without smoothing, if the method has no ``mode``.

    Raises:
        TypeError: If the module has no such method.
    """

    def __init__(self, module: nn.Module, base: Reconstruct | None = None) -> None:
        method = getattr(module, "reconstruct", None)
        if not callable(method):
            raise TypeError(
                f"{type(module).__name__} has no method reconstruct(batch) that returns images of shape (B, H, W). Add "
                "one, or take a LitReconstruction."
            )
        self.module, self.base, self.method = module, base, method
        self.takes = set(signature(method).parameters)

    @property
    def has_base(self) -> bool:
        """Whether the module can reconstruct without smoothing."""
        return self.base is not None or "mode" in self.takes

    @property
    def has_steps(self) -> bool:
        """Whether the number of unrolled steps can be chosen."""
        return "steps" in self.takes

    def __call__(
        self,
        batch: Mapping[str, Any],
        base: bool = False,
        steps: int | None = None,
        key: Sequence[int] | None = None,
    ) -> Tensor:
        """Reconstruct a batch.

        Args:
            batch: The batch.
            base: Whether to reconstruct without smoothing.
            steps: Number of unrolled steps; ``None`` for the module's own.
            key: Determines the noise; ``None`` for the module's own.

        Returns:
            Shape ``(B, H, W)``.

        Raises:
            TypeError: If the module does not support the arguments.
        """
        if base and self.base is not None:
            return self.base(self.module, batch)
        wanted = {"mode": "vanilla" if base else None, "steps": steps, "key": key}
        options = {name: value for name, value in wanted.items() if value is not None}
        if missing := sorted(options.keys() - self.takes - {"key"}):
            raise TypeError(
                f"{type(self.module).__name__}.reconstruct takes no {missing[0]}=. Add it, or leave out what needs it: "
                "surrogate='base' and 'adaptive' need mode= or the attack's base=, other numbers of steps need steps=."
            )
        return self.method(batch, **{name: value for name, value in options.items() if name in self.takes})

    def operator(self, batch: Mapping[str, Any]) -> LinearOperator:
        """The operator of a batch's measurements: the module's own, or that of multi-coil MRI."""
        own = getattr(self.module, "operator", None)
        return own(batch) if callable(own) else MultiCoilMRI(batch["maps"], batch["mask"])
