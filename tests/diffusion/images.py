"""Images with captions for the pipeline of random weights, and runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.data.captioned_images import CaptionedImageDataModule
from tests.diffusion.tiny import SgdTextToImage, trainer

CONCEPT = ["van gogh", "a circle in the style of van gogh", "a van gogh", "red art by van gogh"]
KEPT = ["a photo of a green square", "a red circle", "a photo"]


def rows(captions: list[str], seed: int) -> list[dict[str, Any]]:
    pixels = torch.rand(len(captions), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return [{"image": image, "caption": caption} for image, caption in zip(pixels, captions, strict=True)]


def images(forget: Any = None, mask: Tensor | None = None, **options: Any) -> CaptionedImageDataModule:
    """Four images of a concept, which is to become another, and three to keep."""
    defaults: dict[str, Any] = {"anchor": {"van gogh": "the photo"}, "size": 16, "batch_size": 2}
    if forget is None:
        forget = [row if mask is None else {**row, "mask": mask} for row in rows(CONCEPT, 0)]
    return CaptionedImageDataModule(forget, rows(KEPT, 1), **(defaults | options))


def captioned(anchor: str = "art", **options: Any) -> CaptionedImageDataModule:
    """Two images to forget and two to keep, which are one batch."""
    forget, retain = rows(CONCEPT[:2], 1), rows(KEPT[:2], 2)
    return CaptionedImageDataModule(forget, retain, anchor, size=16, batch_size=2, **options)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append({k.removeprefix("unlearn/"): v for k, v in trainer.callback_metrics.items()})


def run(folder: Path, *callbacks: L.Callback, data: Any = None, ckpt_path: Path | None = None, **options: Any) -> Any:
    """Unlearn; the losses are the module's attribute ``seen``."""
    names = ("trainable", "lr", "gradient_checkpointing")
    settings = {"trainable": "xattn", "lr": 0.05} | {k: options.pop(k) for k in names if k in options}
    module, losses = options.pop("kind", SgdTextToImage)(str(folder), **settings), Losses()
    trainer(*callbacks, losses, **options).fit(module, data or images(), ckpt_path=ckpt_path)
    module.seen = losses.values
    return module


def first_batch(model: LitTextToImage, make: Callable[..., CaptionedImageDataModule] = images) -> dict[str, Any]:
    data = make(tokenizer=model.tokenizer)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
