"""CLIP score: similarity of images and their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn.core.checks import finite
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.diffusion.metrics.features import refuse

__all__ = ["CLIPScore", "clip_similarity", "load_clip"]


def load_clip(model: str) -> tuple[Any, Any]:
    """A CLIP model and its processor, from a folder of ``save_pretrained`` or the hub.

    Weights are read from safetensors files only.

    Args:
        model: Folder, which needs no network, or hub id, such as ``openai/clip-vit-large-patch14``.

    Returns:
        ``CLIPModel`` in evaluation mode, and ``CLIPProcessor``.

    Raises:
        ImportError: If transformers is missing.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError:
        raise ImportError('CLIPScore needs transformers: pip install "lightning-unlearn[diffusion]"') from None
    network: Any = CLIPModel.from_pretrained(model, use_safetensors=True)
    return network.eval().requires_grad_(False), CLIPProcessor.from_pretrained(model)


@torch.no_grad()
def clip_similarity(model: Any, processor: Any, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Cosine of CLIP's embeddings of each image and its prompt, which some tables print as the CLIP score.

    Args:
        model: A ``CLIPModel``.
        processor: Its ``CLIPProcessor``; prompts are cut to what the model can read.
        images: Shape ``(B, 3, H, W)``, colours in [0, 1]; rounded to 8 bits, as an image file has them.
        prompts: ``B`` prompts.

    Returns:
        Shape ``(B,)``, in [-1, 1].

    Raises:
        ValueError: If there are not as many prompts as images, or the images are of another shape or range.
    """
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point of shape (B, 3, H, W), but got {tuple(images.shape)} {images.dtype}."
        )
    if isinstance(prompts, str) or len(prompts) != len(images):
        got = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"Each image needs a prompt of its own, but got {len(images)} images and {got}.")
    finite("images", images)
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"Colours must be in [0, 1], but are in [{images.min():.3g}, {images.max():.3g}]. Divide bytes by 255, and "
            "scale what is in [-1, 1]."
        )
    inputs = processor(
        images=list((images * 255).round().byte().cpu()),
        text=list(prompts),
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
    )
    outputs = model(**{name: value.to(model.device) for name, value in inputs.items()})
    return torch.cosine_similarity(outputs.image_embeds.float(), outputs.text_embeds.float(), dim=-1)


class CLIPScore(Metric):
    r"""How well images fit their prompts, $\max\big(0, \frac{100}{N} \sum_i \cos(E_{x_i}, E_{c_i})\big)$.

    The definition is that of torchmetrics, whose own class does not run with transformers 5. Tables with values near
    0.3 report the cosine instead, see [`clip_similarity`][lightning_unlearn.clip_similarity].

    Args:
        model: Folder written by ``save_pretrained``, or hub id, or a pair of a ``CLIPModel`` and its processor.

    Raises:
        ImportError: If transformers is missing.
        ValueError: If nothing was counted, or images and prompts do not fit together.

    References:
        Hessel et al., *CLIPScore: A Reference-free Evaluation Metric for Image Captioning*, arXiv:2104.08718, whose
        own weight is 2.5 in place of 100.
    """

    higher_is_better: bool | None = True
    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    similarity: Tensor
    count: Tensor

    def __init__(self, model: str | tuple[Any, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model, self.processor = load_clip(model) if isinstance(model, str) else model
        self.add_state("similarity", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Count images ``(B, 3, H, W)`` with colours in [0, 1], and their prompts."""
        with evaluating(self.model):
            cosines = clip_similarity(self.model, self.processor, images, prompts)
        self.similarity += cosines.sum()
        self.count += len(cosines)

    def compute(self) -> Tensor:
        """Scalar in [0, 100]."""
        if not self.count:
            refuse(self, "CLIPScore has counted no image. Call update with images and their prompts first.")
        return (100 * self.similarity / self.count).clamp(min=0).float()
