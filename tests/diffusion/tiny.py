"""A Stable Diffusion pipeline of random weights, small enough to train in a test, with data and runs for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_unlearn import ESD, CaptionedImageDataModule, LitTextToImage, PromptDataModule

WORDS = ["a", "photo", "of", "green", "red", "circle", "square", "in", "the", "style", "van", "gogh", "art"]
LENGTH = 16
TENSORS = 286  # of the UNet
CONCEPT = ["van gogh", "a circle in the style of van gogh", "a van gogh", "red art by van gogh"]
KEPT = ["a photo of a green square", "a red circle", "a photo"]


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def write_tokenizer(folder: Path) -> None:
    """One id a known word; an unknown word falls to characters."""
    letters = byte_characters()
    vocabulary, merges = [*letters, *(f"{c}</w>" for c in letters)], []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        whole = pieces[0]
        for piece in pieces[1:]:
            merges.append(f"{whole} {piece}")
            whole += piece
            vocabulary.append(whole)
    vocabulary = list(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "bos_token": "<|startoftext|>"}
    settings |= {"eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pipeline(folder: Path, prediction: str = "epsilon", blocks: int = 2, layers: int = 2) -> Path:
    """A folder that ``StableDiffusionPipeline.from_pretrained`` opens."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    write_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, *(32,) * (blocks - 1)),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * blocks,
        up_block_types=("CrossAttnUpBlock2D",) * blocks,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


class SgdTextToImage(LitTextToImage):
    """Adam's first steps only see a gradient's sign, so rounding errors would look like differences."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr, momentum=0.9)


def prompts(**options: Any) -> PromptDataModule:
    """Two prompts of a concept, and two to keep."""
    defaults: dict[str, Any] = {"anchor": "art", "batch_size": 2, "repeat": 2}
    return PromptDataModule(CONCEPT[:2], KEPT[:2], **(defaults | options))


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


def trainer(*callbacks: Any, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))


class Losses(L.Callback):
    """The parts of each batch's loss."""

    def __init__(self) -> None:
        self.values: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # callback_metrics would keep the parts of earlier batches.
        self.values.append({k.removeprefix("unlearn/"): v.clone() for k, v in trainer.logged_metrics.items()})

    def column(self, name: str) -> Tensor:
        return torch.stack([parts[name] for parts in self.values])


def run(folder: Path, *callbacks: L.Callback, data: Any = None, ckpt_path: Path | None = None, **options: Any) -> Any:
    """Unlearn, by default images; options are the module's or the Trainer's. The losses are in ``seen``."""
    names = ("trainable", "compat", "lr", "gradient_checkpointing")
    settings = {"lr": 0.05} | {k: options.pop(k) for k in names if k in options}
    module, losses = options.pop("kind", SgdTextToImage)(str(folder), **settings), Losses()
    trainer(*callbacks, losses, **options).fit(module, data or images(), ckpt_path=ckpt_path)
    module.seen = losses.values
    return module


def erase(folder: Path, method: Any = None, data: Any = None, **options: Any) -> Any:
    """The same with prompts, and ESD by default."""
    return run(folder, method or ESD(steps=5), data=data or prompts(), **options)


def first_batch(model: LitTextToImage, make: Callable[..., Any] | None = None) -> dict[str, Any]:
    """The first training batch, by default of images."""
    data = (make or images)(tokenizer=model.tokenizer)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
