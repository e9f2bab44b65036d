"""A Stable Diffusion pipeline of random weights, small enough to train in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_unlearn import ESD, LitTextToImage, PromptDataModule

WORDS = ["a", "photo", "of", "green", "red", "circle", "square", "in", "the", "style", "van", "gogh", "art"]
LENGTH = 16
TENSORS = 286  # of the UNet


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
    return PromptDataModule(
        ["van gogh", "a circle in the style of van gogh"],
        ["a photo of a green square", "a red circle"],
        **(defaults | options),
    )


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


def erase(folder: Path, method: Any = None, data: Any = None, ckpt_path: Path | None = None, **options: Any) -> Any:
    """Erase the concept; options of the module are those that it takes, all others the Trainer's."""
    names = ("trainable", "compat", "lr")
    module = SgdTextToImage(str(folder), **({"lr": 0.05} | {k: options.pop(k) for k in names if k in options}))
    run = trainer(method or ESD(steps=5), **options)
    run.fit(module, data or prompts(), ckpt_path=ckpt_path)
    return module
