"""Answer sets: what is drawn, once, and by which model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_unlearn import LitTextToImage, SafeLatentDiffusion, sample_answers
from lightning_unlearn.diffusion.canvas import answers
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, UNLEARN_CANVAS, CanvasNames
from tests.diffusion.tiny import write_pipeline

NAMES = CanvasNames(("Van_Gogh", "Rust"), ("Cats", "Sea"))
KEPT: dict[str, Any] = {"names": NAMES, "seeds": (188, 288), "suffix": ".png"}


class Painter(nn.Module):
    """Paints the noise of a seed, in a colour of the prompt's length."""

    def __init__(self, bright: float = 0.5, fails_after: int | None = None) -> None:
        super().__init__()
        self.bright = nn.Parameter(torch.tensor(bright))
        self.fails_after = fails_after
        self.asked: list[tuple[str, int, int, float]] = []

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        assert not self.training
        self.asked += [(p, s, steps, guidance) for p, s in zip(prompts, seeds, strict=True)]
        noise = [torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        colours = torch.tensor([len(prompt) / 100 for prompt in prompts]).view(-1, 1, 1, 1)
        return (torch.stack(noise) * self.bright + colours).clamp(0, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_published_set_has_5100_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter, saved = Painter(), []
    monkeypatch.setattr(answers, "_save", lambda image, path, quality: saved.append(path.name))
    assert sample_answers(painter, tmp_path, batch_size=500) == len(saved) == 51 * 20 * 5
    assert {UNLEARN_CANVAS.parse(name)[2] for name in saved} == set(ANSWER_SEEDS)
    assert len(set(saved)) == 5100
    assert "Red_Blue_Ink_Sea_seed888.jpg" in saved
    assert ("A Cats image in Photo style.", 188, 100, 9.0) in painter.asked


def test_formats(tmp_path: Path) -> None:
    for suffix, kind in ((".jpg", "JPEG"), (".png", "PNG")):
        sample_answers(Painter(), tmp_path / kind, **KEPT | {"suffix": suffix})
        with Image.open(tmp_path / kind / f"Van_Gogh_Sea_seed188{suffix}") as image:
            assert (image.format, image.size) == (kind, (4, 4))


def test_photos_can_be_left_out(tmp_path: Path) -> None:
    assert sample_answers(Painter(), tmp_path, **KEPT, photo=False) == 8
    assert not list(tmp_path.glob("Seed_Images*"))


def test_an_interrupted_set_goes_on_to_the_same_images(tmp_path: Path) -> None:
    whole = Painter()
    assert sample_answers(whole, tmp_path / "whole", **KEPT, batch_size=3) == 12
    with pytest.raises(KeyboardInterrupt):
        sample_answers(Painter(fails_after=6), tmp_path / "cut", **KEPT, batch_size=3)
    assert len(list((tmp_path / "cut").glob("*.png"))) == 6
    resumed = Painter()
    assert sample_answers(resumed, tmp_path / "cut", **KEPT, batch_size=4) == 6
    assert resumed.asked == whole.asked[6:]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert sample_answers(Painter(), tmp_path / "cut", **KEPT) == 0


def test_a_deleted_image_is_drawn_again(tmp_path: Path) -> None:
    sample_answers(Painter(), tmp_path, **KEPT)
    before = contents(tmp_path)
    (tmp_path / "Rust_Sea_seed288.png").unlink()
    assert sample_answers(Painter(), tmp_path, **KEPT) == 1
    assert contents(tmp_path) == before


def test_seeds_can_be_added(tmp_path: Path) -> None:
    sample_answers(Painter(), tmp_path, **KEPT)
    assert sample_answers(Painter(), tmp_path, **KEPT | {"seeds": (188, 588)}) == 6


@pytest.mark.parametrize(
    ("model", "changed", "told"),
    [
        (0.4, {}, "model"),
        (0.5, {"steps": 50}, "steps 100, not 50"),
        (0.5, {"guidance": 7.5}, "guidance 9.0, not 7.5"),
        (0.5, {"suffix": ".jpg"}, "suffix '.png', not '.jpg'"),
        (0.5, {"names": CanvasNames(NAMES.styles, NAMES.objects, template="{object}, {style}")}, "template"),
    ],
)
def test_another_model_or_setting_is_refused(tmp_path: Path, model: float, changed: Any, told: str) -> None:
    sample_answers(Painter(), tmp_path, **KEPT)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"of another model or other settings: .*{told}"):
        sample_answers(Painter(model), tmp_path, **KEPT | changed)
    assert contents(tmp_path) == before


def test_images_of_an_unknown_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Rust_Sea_seed188.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images, such as Rust_Sea_seed188.jpg, but no answers.json"):
        sample_answers(Painter(), tmp_path, **KEPT)


def test_processes_share_the_images(tmp_path: Path) -> None:
    painters = [Painter(), Painter()]
    drawn = [sample_answers(p, tmp_path, **KEPT, part=(i, 2)) for i, p in enumerate(painters)]
    assert drawn == [6, 6]
    assert len({image for p in painters for image in p.asked}) == 12
    with pytest.raises(ValueError, match=r"part must be in \[0, 1\]"):
        sample_answers(Painter(), tmp_path, **KEPT, part=(2, 2))


def test_a_diverged_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"colours are NaN or infinite. Has the model diverged"):
        sample_answers(Painter(float("nan")), tmp_path, **KEPT)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("wrong", [{"seeds": ()}, {"seeds": (1, 1)}, {"steps": 0}, {"suffix": ".gif"}, {"quality": 0}])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sample_answers(Painter(), tmp_path, **KEPT | wrong)


def pixels(folder: Path, name: str) -> Tensor:
    import numpy as np

    with Image.open(folder / name) as image:
        return torch.tensor(np.asarray(image)).int()


def test_stable_diffusion_draws_by_ddim_from_the_noise_of_the_seed(tmp_path: Path, tiny_sd: Path) -> None:
    from diffusers import DDIMScheduler

    module = LitTextToImage(str(tiny_sd)).train()
    own = module.pipeline.scheduler
    options: dict[str, Any] = {**KEPT, "steps": 2, "seeds": (188,), "photo": False}
    sample_answers(module, tmp_path / "together", **options, batch_size=4)
    assert module.pipeline.scheduler is own
    assert module.training
    sample_answers(module, tmp_path / "own", **options, sampler="own")
    sample_answers(module.pipeline, tmp_path / "pipeline", **options, batch_size=1)
    module.pipeline.scheduler = DDIMScheduler.from_config(own.config, clip_sample=False, set_alpha_to_one=False)
    sample_answers(module, tmp_path / "one by one", **options, batch_size=1)
    for name in ("Rust_Sea_seed188.png", "Van_Gogh_Cats_seed188.png"):
        together = pixels(tmp_path / "together", name)
        for other in ("pipeline", "one by one"):
            assert (together - pixels(tmp_path / other, name)).abs().max() <= 1
        assert not torch.equal(together, pixels(tmp_path / "own", name))
    record = json.loads((tmp_path / "own" / "answers.json").read_text())
    assert (record["sampler"], record["steps"], record["suffix"]) == ("own", 2, ".png")


def test_a_guard_on_a_sampler_that_would_be_replaced_is_refused(tmp_path: Path) -> None:
    module = LitTextToImage(str(write_pipeline(tmp_path / "model")))
    options: dict[str, Any] = {**KEPT, "steps": 2, "seeds": (188,), "photo": False}
    with SafeLatentDiffusion(module, "van gogh"):
        with pytest.raises(ValueError, match="A guard is on the pipeline's PNDMScheduler"):
            sample_answers(module, tmp_path / "answers", **options)
        assert sample_answers(module, tmp_path / "answers", **options, sampler="own") == 4
