"""Fingerprint of a victim: whatever changes its images changes it, and a folder of results tells victims apart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_unlearn import (
    LitTextToImage,
    PromptAttack,
    PromptSearch,
    SafeLatentDiffusion,
    SuppressEOT,
)
from lightning_unlearn.diffusion.attacks.fingerprint import fingerprint
from lightning_unlearn.diffusion.engine.adapters import LowRankAdapters
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.engine.pipeline import load_frozen

Change = Callable[[LitTextToImage, Path], "AbstractContextManager[Any] | None"]


def one_weight(model: LitTextToImage, _: Path) -> None:
    next(model.unet.parameters()).data.view(-1)[0] += 1e-6


def two_weights_exchanged(model: LitTextToImage, _: Path) -> None:
    weight = next(model.text_encoder.parameters()).data
    weight.copy_(weight.flip(0))


def autoencoder(model: LitTextToImage, _: Path) -> None:
    next(model.vae.parameters()).data.view(-1)[0] += 1e-6


def half(model: LitTextToImage, _: Path) -> None:
    model.bfloat16().float()
    model.unet.to(torch.bfloat16)


def another_sampler(model: LitTextToImage, _: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    model.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(model.scheduler.config)


def settings_of_the_sampler(model: LitTextToImage, _: Path) -> None:
    model.pipeline.scheduler = type(model.scheduler).from_config(model.scheduler.config, steps_offset=0)


def added_words(model: LitTextToImage, folder: Path) -> None:
    save_file({"<cat>": torch.ones(1, 32)}, folder / "cat.safetensors")
    model.pipeline.load_textual_inversion(str(folder / "cat.safetensors"), token="<cat>")


def shorter_prompts(model: LitTextToImage, _: Path) -> None:
    model.tokenizer.model_max_length = 8


def an_adapter(model: LitTextToImage, _: Path) -> None:
    LowRankAdapters(model.unet)


def free_u(model: LitTextToImage, _: Path) -> None:
    model.pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


def own_hook(model: LitTextToImage, _: Path) -> None:
    model.text_encoder.register_forward_hook(lambda *_: None)


CHANGES: list[Change] = [
    one_weight,
    two_weights_exchanged,
    autoencoder,
    half,
    another_sampler,
    settings_of_the_sampler,
    added_words,
    shorter_prompts,
    an_adapter,
    free_u,
    own_hook,
    lambda model, _: SafeLatentDiffusion(model, "van gogh", "max"),
    lambda model, _: SafeLatentDiffusion(model, "van gogh", "weak"),
    lambda model, _: SafeLatentDiffusion(model, "a red circle", "max"),
    lambda model, _: SuppressEOT(model, "van gogh"),
    lambda model, _: SuppressEOT(model, "van gogh", alpha=0.5),
]


def test_each_change_has_a_fingerprint_of_its_own(tiny_sd: Path, tmp_path: Path) -> None:
    plain = LitTextToImage(str(tiny_sd))
    prints = [fingerprint(plain)]
    for change in CHANGES:
        model = deepcopy(plain)
        with change(model, tmp_path) or nullcontext():
            prints.append(fingerprint(model))
    assert len(set(prints)) == len(prints)


def test_what_changes_no_image_changes_no_fingerprint(tiny_sd: Path, tmp_path: Path) -> None:
    plain = LitTextToImage(str(tiny_sd))
    wanted = fingerprint(plain)
    assert fingerprint(LitTextToImage(str(tiny_sd), trainable="full", lr=1.0, gradient_checkpointing=True)) == wanted
    assert fingerprint(load_frozen(str(tiny_sd))) == wanted  # type: ignore[arg-type]
    plain.generate(["a red circle"], [0], steps=2)
    with PassCounter() as counter:
        counter.attach(plain)
        assert fingerprint(plain) == wanted
    with SuppressEOT(plain, "van gogh") as guard:
        guarded = fingerprint(plain)
        plain.generate(["van gogh"], [0], steps=1)
        assert guard.suppressed
        assert fingerprint(plain) == guarded
    plain.save_pretrained(tmp_path / "same")
    again = LitTextToImage(str(tmp_path / "same"))
    again.save_pretrained(tmp_path / "same2")
    assert fingerprint(again) == fingerprint(LitTextToImage(str(tmp_path / "same2")))


class Bright:
    """Says that images are bright which no other victim's are."""

    name, version, classes = "bright", "1", ("dark", "bright")

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score = images.mean((1, 2, 3))
        return torch.zeros(len(images), dtype=torch.int64), torch.stack([1 - score, score], 1)


def test_a_folder_is_not_shared_by_victims(tiny_sd: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    attack = PromptAttack(Bright(), "bright", PromptSearch(optimizer="none"), sampler_steps=2)
    first = attack.run(module, ["van gogh"], output_dir=tmp_path)
    with SafeLatentDiffusion(module, "a red circle", "max"):
        with pytest.raises(ValueError, match=r"results of another attack.*victim.*guards and adapters that are on"):
            attack.run(module, ["van gogh"], output_dir=tmp_path)
        second = attack.run(module, ["van gogh"], output_dir=tmp_path, overwrite=True)
    assert first.prompts[0].score != second.prompts[0].score


def test_an_attack_by_gradient_does_not_meet_a_guard_of_pipelines(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    attack = PromptAttack(Bright(), "bright", PromptSearch(tokens=1, levels=1, iterations=1), sampler_steps=1)
    with SafeLatentDiffusion(module, "van gogh"), pytest.raises(ValueError, match="calls the UNet on its own"):
        attack.run(module, ["van gogh"], torch.rand(1, 3, 16, 16))
