"""A pipeline of Stable Diffusion 1.4's shapes, with random weights, goes through the methods as it is."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import ESD, UCE, AdvUnlearn, LitTextToImage, SoftPromptAttacker
from tests.diffusion.tiny import prompts, trainer, write_tokenizer

LENGTH = 77


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp16, 2 GB."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd14")
    write_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words", model_max_length=LENGTH)
    torch.manual_seed(0)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=LENGTH, projection_dim=768, **special,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    # The defaults of the others are those of Stable Diffusion 1.x.
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in text_encoder.parameters()) == 123_060_480
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    StableDiffusionPipeline(
        vae=vae.half(), text_encoder=text_encoder.half(), tokenizer=tokenizer, unet=unet.half(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """A trainer and its module refer to each other: without this, each case would keep its gigabytes."""
    yield
    gc.collect()


CASES: dict[str, tuple[Any, Any, int]] = {
    "ESD": (lambda: ESD(steps=1), "xattn", 16 * 5),
    "UCE": (lambda: UCE(), "kv", 16 * 2),
    "AdvUnlearn": (
        lambda: AdvUnlearn(warmup=0, attack=SoftPromptAttacker(steps=1, latents="trajectory"), steps=1),
        "text_encoder",
        12 * 16 + 2,
    ),
}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("case", CASES)
def test_one_step_moves_what_it_should(case: str, stable_diffusion: Path) -> None:
    method, trainable, tensors = CASES[case]
    module = LitTextToImage(str(stable_diffusion), trainable=trainable, lr=1e-2)
    trains = {name for name, p in module.named_parameters() if p.requires_grad}
    assert len(trains) == tensors
    before = {name: p.detach().clone() for name, p in module.named_parameters() if name in trains}
    sums = {name: p.detach().double().sum() for name, p in module.named_parameters() if name not in trains}
    trainer(method(), max_steps=1).fit(module, prompts(batch_size=1, retain_batch_size=1, repeat=1))
    moved = {name for name, p in module.named_parameters() if name in trains and not torch.equal(p, before[name])}
    assert len(moved) > 0.9 * tensors
    for name, p in module.named_parameters():
        assert torch.isfinite(p).all()
        if name in sums:
            assert p.detach().double().sum() == sums[name]
