"""Attention probabilities of the UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_unlearn.core.lightning import MisconfigurationException

__all__ = ["attention_probabilities", "check_attention"]


@contextmanager
def attention_probabilities(unet: nn.Module, layers: str = "attn2") -> Iterator[dict[str, list[Tensor]]]:
    """Record attention probabilities while the UNet runs; gradients flow through them.

    Inside the context, the layers are computed with an explicit softmax, because fused attention never materialises the
    probabilities; afterwards they get their own processors back. A compiled UNet keeps the processors that it was
    compiled with.

    Args:
        unet: The UNet.
        layers: Part of the names of the attention layers: ``"attn2"`` attends to the text, ``"attn1"`` to the image.

    Yields:
        For each layer by name, one tensor per call, shape ``(B, heads, queries, keys)``.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor

    chosen: dict[str, Any] = {n: m for n, m in unet.named_modules() if isinstance(m, Attention) and layers in n}
    if not chosen:
        raise ValueError(f"{type(unet).__name__} has no attention layer with {layers!r} in its name.")
    recorded: dict[str, list[Tensor]] = {name: [] for name in chosen}
    processors = {name: layer.processor for name, layer in chosen.items()}
    for name, layer in chosen.items():
        layer.set_processor(AttnProcessor())
        layer.get_attention_scores = _recording(layer, recorded[name])
    try:
        yield recorded
    finally:
        for name, layer in chosen.items():
            del layer.get_attention_scores
            layer.set_processor(processors[name])


def check_attention(unet: nn.Module, method: str) -> None:
    """Refuse a UNet whose attention can't be recorded for a loss.

    Raises:
        MisconfigurationException: With gradient checkpointing.
    """
    if getattr(unet, "is_gradient_checkpointing", False):
        raise MisconfigurationException(
            f"{method} reads the attention of the forward pass, but gradient checkpointing drops it and recomputes it "
            "later. Set gradient_checkpointing=False; trainable='xattn' saves memory as well."
        )


def _recording(layer: Any, calls: list[Tensor]) -> Callable[..., Tensor]:
    compute = layer.get_attention_scores

    def scores(query: Tensor, key: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        probabilities = compute(query, key, attention_mask)
        calls.append(probabilities.unflatten(0, (-1, layer.heads)))
        return probabilities

    return scores
