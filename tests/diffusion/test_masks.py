"""Weight masks beside objectives of diffusion models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import (
    ESD,
    SNIP,
    DiffusionObjective,
    EraseDiff,
    ForgetMeNot,
    LitTextToImage,
    SalUn,
    denoising_nll,
)
from lightning_unlearn.diffusion.engine.parameters import select_params
from tests.diffusion.tiny import images, prompts, run, weights

METHODS: dict[str, Callable[[], DiffusionObjective]] = {
    "EraseDiff": lambda: EraseDiff(inner_steps=1),
    "ForgetMeNot": lambda: ForgetMeNot("van gogh"),
    "ESD": lambda: ESD(steps=2),
}


@pytest.mark.parametrize("kind", [SNIP, SalUn])
@pytest.mark.parametrize("name", METHODS)
def test_a_mask_is_scored_by_the_denoising_loss_of_the_objective(name: str, kind: Any, tiny_sd: Path) -> None:
    method, mask, data = METHODS[name](), kind(0.5), images()
    assert method.score is denoising_nll
    before = weights(LitTextToImage(str(tiny_sd)))
    module = run(tiny_sd, method, mask, data=data, trainable="kv")
    model = LitTextToImage(str(tiny_sd), trainable="kv").eval()
    chosen = select_params(model, "kv")
    rows = [{k: torch.as_tensor(v)[None] for k, v in row.items()} for row in data.sets["forget"]]
    loss = torch.cat([denoising_nll(model, row) for row in rows]).mean()
    gradients = torch.autograd.grad(loss, list(chosen.values()))
    sizes = [(g * p.detach() if kind is SNIP else g).abs() for g, p in zip(gradients, chosen.values(), strict=True)]
    scores, kept = (torch.cat([part.flatten() for part in parts]) for parts in (sizes, mask.masks.values()))
    wanted = scores >= scores.sort().values[len(scores) // 2]
    assert (kept == wanted).float().mean() > 0.999
    for key, value in weights(module).items():
        live = mask.masks.get(key, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~live], before[key][~live]), key
    assert any(not torch.equal(module.get_parameter(key), before[key]) for key in chosen)


def test_rows_without_images_can_not_score_a_mask(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    before = weights(module)
    with pytest.raises(TypeError, match=r"loss is of images: .* CaptionedImageDataModule makes such rows"):
        run(tiny_sd, ESD(steps=2), SNIP(0.5), data=prompts(), kind=lambda *_, **__: module)
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())
