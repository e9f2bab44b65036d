"""Guards as a callback, while images are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import (
    Guard,
    LitTextToImage,
    PromptAttack,
    PromptDataModule,
    SafeLatentDiffusion,
    SuppressEOT,
    UnlearnDiffAtk,
)
from tests.diffusion.tiny import trainer

PROMPTS = ["a circle in the style of van gogh", "a red square"]


def drawn(module: LitTextToImage, *callbacks: L.Callback) -> Tensor:
    data = PromptDataModule(PROMPTS[:1], PROMPTS[1:], seed=3)
    found: Any = trainer(*callbacks).predict(module, data)
    rows = [row for batch in found for row in batch]
    assert [(row["set"], row["prompt"], row["seed"]) for row in rows] == [
        ("forget", PROMPTS[0], 3),
        ("retain", PROMPTS[1], 4),
    ]
    return torch.stack([row["image"] for row in rows])


def hooks(module: LitTextToImage) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("name", ["SafeLatentDiffusion", "SuppressEOT"])
def test_images_are_drawn_within_the_guard_and_it_is_taken_off(name: Any, tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd), steps=6, guidance=4.0)
    plain = drawn(module)
    torch.testing.assert_close(plain, module.generate(PROMPTS, [3, 4], 6, 4.0, batch_size=1), atol=1e-5, rtol=0)
    options: dict[str, Any] = {"config": "max"} if name == "SafeLatentDiffusion" else {"scale": 3.0}
    found = drawn(module, Guard(name, "van gogh", options))
    context: Any = {"SafeLatentDiffusion": SafeLatentDiffusion, "SuppressEOT": SuppressEOT}[name]
    with context(module, "van gogh", **options):
        expected = module.generate(PROMPTS, [3, 4], 6, 4.0, batch_size=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - plain)[0].abs().max() > 1e-3
    assert hooks(module) == 0
    torch.testing.assert_close(drawn(module), plain, atol=1e-5, rtol=0)


def test_a_crash_takes_the_guard_off(tiny_sd: Path) -> None:
    class Breaks(L.Callback):
        def on_predict_batch_start(self, *_: Any) -> None:
            raise RuntimeError("out of memory")

    module = LitTextToImage(str(tiny_sd), steps=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        drawn(module, Guard("SuppressEOT", "van gogh"), Breaks())
    assert hooks(module) == 0


def test_what_does_not_fit_is_refused(tiny_sd: Path) -> None:
    with pytest.raises(ValueError, match="guard must be 'SafeLatentDiffusion' or"):
        Guard("sld", "van gogh")  # type: ignore[arg-type]
    module = LitTextToImage(str(tiny_sd), steps=2)
    with pytest.raises(ValueError, match="config must be 'weak', 'medium'"):
        drawn(module, Guard("SafeLatentDiffusion", "van gogh", {"config": "none"}))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        LitTextToImage(str(tiny_sd), steps=0)

    class Judge:
        name, version, classes = "judge", "1", ("art", "none")

        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(images), dtype=torch.int64), torch.ones(len(images), 2)

    attack = UnlearnDiffAtk(PromptAttack(Judge(), "art"), ["van gogh"])
    data = PromptDataModule(PROMPTS[:1], heldout={"general": PROMPTS})
    with pytest.raises(MisconfigurationException, match="calls the UNet on its own"):
        trainer(Guard("SafeLatentDiffusion", "van gogh"), attack).test(module, data)
