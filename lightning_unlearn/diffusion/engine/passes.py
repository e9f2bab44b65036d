"""Counter of forward passes, the cost of a method."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_unlearn.diffusion.engine.model import TextToImage

__all__ = ["PassCounter"]


class PassCounter:
    """Counts forward passes of the UNet and the text encoder, and the rows in them, gradients or not.

    Conditional and unconditional outputs from one pass count as one pass with twice the rows.

    Used as a context manager, it stops counting at the end.
    """

    def __init__(self) -> None:
        self.unet = self.unet_rows = self.text_encoder = self.text_encoder_rows = 0
        self._handles: list[Any] = []

    def attach(self, model: TextToImage) -> None:
        """Count from now on."""
        self.detach()
        for name in ("unet", "text_encoder"):
            self._handles.append(getattr(model, name).register_forward_pre_hook(self._hook(name), with_kwargs=True))

    def detach(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from earlier counts."""
        vars(self).update(state)

    def __enter__(self) -> PassCounter:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _hook(self, name: str) -> Any:
        def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first: Tensor = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            setattr(self, name, getattr(self, name) + 1)
            setattr(self, f"{name}_rows", getattr(self, f"{name}_rows") + len(first))

        return count
