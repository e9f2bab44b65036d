"""Captioned images of random colours, for methods that train on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.data.forget_retain import ForgetRetainDataModule
from lightning_unlearn.diffusion.text import tokenize

from .tiny import SgdTextToImage, trainer

FORGET = ["van gogh", "a circle in the style of van gogh"]
RETAIN = ["a photo of a green square", "a red circle"]


def rows(tokenizer: Any, prompts: list[str], seed: int, anchor: str | None = None) -> list[dict[str, Tensor]]:
    """Images of 16 pixels with their captions."""
    images = torch.rand(len(prompts), 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    columns = {"pixel_values": images, "input_ids": tokenize(tokenizer, prompts)["input_ids"]}
    if anchor is not None:
        columns["anchor_input_ids"] = tokenize(tokenizer, [anchor] * len(prompts))["input_ids"]
    return [{name: column[i] for name, column in columns.items()} for i in range(len(prompts))]


def captioned(tokenizer: Any, anchor: str | None = "art", **options: Any) -> ForgetRetainDataModule:
    """Two images to forget, and two to keep."""
    forget = rows(tokenizer, FORGET, 1, anchor)
    return ForgetRetainDataModule(forget, rows(tokenizer, RETAIN, 2), **({"batch_size": 2} | options))


def run(
    folder: Path, method: Any, *others: Any, data: Any = None, ckpt_path: Path | None = None, **options: Any
) -> Any:
    """Train a pipeline on the images; options of the module are those that it takes, all others the Trainer's."""
    names = ("trainable", "lr")
    module = SgdTextToImage(str(folder), **({"lr": 0.05} | {k: options.pop(k) for k in names if k in options}))
    trainer(method, *others, **options).fit(module, data or captioned(module.tokenizer), ckpt_path=ckpt_path)
    return module
