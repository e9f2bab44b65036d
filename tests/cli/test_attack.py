"""``lightning-unlearn attack``."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_unlearn import ESD, LitTextToImage
from lightning_unlearn.cli import attack as command
from lightning_unlearn.diffusion.attacks import judged, prompt_attack
from lightning_unlearn.diffusion.attacks.search import PromptSearch
from lightning_unlearn.diffusion.attacks.victim import read_images
from tests.diffusion.tiny import prompts, trainer

SMALL = ["--attack.search.tokens=2", "--attack.search.levels=2", "--attack.search.iterations=1"]
SMALL += ["--attack.sampler_steps=2", "--attack.batch_size=2", "--device=cpu"]


class Dark:
    """Sees the concept in images that are darker than a threshold."""

    name, version, classes = "dark", "1", ("light", "dark")

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        score = 1 - images.double().mean((1, 2, 3))
        return (score > self.threshold).long(), torch.stack([1 - score, score], 1)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Dark:
    dark = Dark(2.0)
    monkeypatch.setattr(judged, "judge_named", lambda name: dark)
    return dark


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,evaluation_seed,evaluation_guidance\nvan gogh,3,7\na red circle,4,2.5\n")
    return path


def run(*words: Any) -> Any:
    return auto_cli(command.attack, args=[*map(str, words), *SMALL], as_positional=False)


def test_a_folder_is_attacked_and_the_outcome_written(
    tiny_sd: Path, rows: Path, judge: Dark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (tmp_path / "targets").mkdir()
    for number in (0, 1):
        Image.fromarray(np.full((16, 16, 3), 100 * number, np.uint8)).save(tmp_path / "targets" / f"{number}.png")
    out = tmp_path / "out"
    words = [
        f"--prompts={rows}",
        "--attack.judge=dark",
        "--attack.concept=dark",
        f"--model={tiny_sd}",
        f"--output_dir={out}",
    ]
    words += [f"--targets={tmp_path / 'targets'}"]
    result = run(*words)
    assert [(r.prompt, r.seed, r.guidance, r.steps) for r in result.prompts] == [
        ("van gogh", 3, 7.0, 2),
        ("a red circle", 4, 2.5, 2),
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["prompts"], summary["asr"]) == (2, 0.0)
    assert summary["interval"]["asr"][1] == pytest.approx(0.6576, abs=1e-4)
    assert summary["settings"]["optimizer"] == "text_grad"
    printed = capsys.readouterr().out
    assert "pre_asr   0.00%  [0.00%, 65.76%]" in printed
    assert f"Wrote {out}/prompts.jsonl" in printed
    with pytest.raises(ValueError, match="results of another attack"):
        run(*words, "--attack.search.optimizer=random")
    run(*words, "--attack.search.optimizer=random", "--overwrite=true")
    assert json.loads((out / "summary.json").read_text())["settings"]["optimizer"] == "random"


def test_a_checkpoint_is_attacked_with_targets_of_the_base_model(
    tiny_sd: Path, rows: Path, judge: Dark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = LitTextToImage(str(tiny_sd), lr=1e-2)
    fit = trainer(ESD(steps=2), max_epochs=1)
    fit.fit(module, prompts())
    fit.save_checkpoint(tmp_path / "erased.ckpt")
    judge.threshold = 0.0
    result = run(
        f"--prompts={rows}", "--attack.judge=dark", "--attack.concept=[dark, light]", f"--base={tiny_sd}",
        f"--ckpt_path={tmp_path / 'erased.ckpt'}", f"--output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert (result.pre_asr, result.asr) == (1.0, 1.0)
    assert result.settings["victim"] != result.settings["base"]
    assert result.cost["images"] == 4  # of the base model and of the erased one


def test_one_model_is_wanted(tiny_sd: Path, judge: Dark) -> None:
    for options in ({}, {"model": str(tiny_sd), "ckpt_path": "a.ckpt"}):
        with pytest.raises(ValueError, match="Give one of model and ckpt_path"):
            command.attack(prompt_attack.PromptAttack("dark", "dark"), ["a"], **options)


def test_target_images_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    from PIL import Image

    with pytest.raises(ValueError, match=r"has no \.png"):
        read_images(tmp_path)
    for number in (10, 9, 0):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(tmp_path / f"{number}_0.png")
    Image.fromarray(np.full((5, 6, 3), 11, np.uint8)).save(tmp_path / "11_0.png")
    images = read_images(tmp_path)
    assert [tuple(image.shape) for image in images] == [(3, 4, 6)] * 3 + [(3, 5, 6)]
    assert [round(image[0, 0, 0].item() * 255) for image in images] == [0, 9, 10, 11]


def test_help_has_every_option_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        auto_cli(command.attack, args=["--help"], as_positional=False)
    text = capsys.readouterr().out
    for part, names in (("attack", fields(prompt_attack.PromptAttack)), ("attack.search", fields(PromptSearch))):
        assert all(f"--{part}.{field.name}" in text for field in names)
    with pytest.raises(SystemExit):
        run("--attack.judge=dark", "--attack.concept=dark", "--prompts=[a]", "--model=m", "--attack.search.tokenz=2")
    assert "attack.search.tokenz" in capsys.readouterr().err
