"""Files, prompts and success rates of attacks on prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.prompts import attack_prompts
from lightning_unlearn.diffusion.attacks.result import AttackResult, PromptResult, ResultFile, wilson_interval
from tests.diffusion.attacks.told import PROMPTS, Told, attack, never, outcome

# Resume


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_kill_costs_the_prompts_in_work_only(
    batch_size: int, model: LitTextToImage, targets: Tensor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "iterations": 1}
    whole = attack(never(), **options).run(model, PROMPTS, targets, output_dir=tmp_path / "whole")

    class Killed(Told):
        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            if self.seen >= 9:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        attack(Killed(never().says), **options).run(model, PROMPTS, targets, output_dir=tmp_path / "cut")
    path = tmp_path / "cut" / "prompts.jsonl"
    done = len(path.read_text().splitlines()) - 1
    assert 0 < done < 4
    assert not (tmp_path / "cut" / "summary.json").exists()
    with path.open("a") as file:
        file.write('{"key": "cut sho')  # a kill in the middle of a line
    judge = never()
    resumed = attack(judge, **options).run(model, PROMPTS, targets, output_dir=tmp_path / "cut")
    assert judge.seen == 3 * (4 - done)
    assert outcome(resumed) == outcome(whole)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 5
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["asr"] == 0
    assert resumed.cost["images"] == 12
    again = never()
    attack(again, **options).run(model, PROMPTS, targets, output_dir=tmp_path / "cut")
    assert again.seen == 0


def test_results_of_another_attack_are_not_taken_over(model: LitTextToImage, tmp_path: Path) -> None:
    attack(never(), optimizer="none").run(model, ["a"], output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"another attack \(optimizer: 'none' there, 'random' now\)"):
        attack(never(), optimizer="random").run(model, ["a"], output_dir=tmp_path)
    with torch.no_grad():
        model.unet.conv_out.bias.add_(1)
    with pytest.raises(ValueError, match=r"another attack \(victim"):
        attack(never(), optimizer="none").run(model, ["a"], output_dir=tmp_path)
    attack(never(), optimizer="none").run(model, ["a"], output_dir=tmp_path, overwrite=True)
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 2


# Rates


@pytest.mark.parametrize(("count", "percent"), [(29, 20.42), (108, 76.06), (30, 21.13), (11, 7.75), (3, 2.11)])
def test_rates_of_142_prompts(count: int, percent: float) -> None:
    for before in (0, count // 2, count):
        rows = [PromptResult("a", 0, 7.5, before=i < before, success=before <= i < count) for i in range(142)]
        result = AttackResult(rows, {})
        assert round(100 * result.asr, 2) == percent
        assert result.asr == pytest.approx(result.pre_asr + result.post_asr)
        assert 0 <= result.post_asr <= 1 - result.pre_asr
        if before < 142:
            assert result.conditional_asr == pytest.approx(result.post_asr / (1 - result.pre_asr))


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (29, 142)])
def test_intervals_are_scipys(k: int, n: int) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_no_prompt_that_counts_has_no_rate() -> None:
    result = AttackResult([PromptResult("a", 0, 7.5, skipped="is too long")], {})
    assert result.summary()["asr"] is None


def test_the_highest_classes_count_as_success() -> None:
    class Many:
        name, version, classes = "many", "1", ("a", "b", "c")

        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tensor([0, 1]), torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.5, 0.3]])

    images = torch.zeros(2, 3, 4, 4)
    assert PromptAttack(Many(), "a").shows(images) == ([True, False], pytest.approx([0.5, 0.2]))
    assert PromptAttack(Many(), "a", top=2).shows(images)[0] == [True, False]
    assert PromptAttack(Many(), "a", top=3).shows(images)[0] == [True, True]
    assert PromptAttack(Many(), ["a", "b"]).shows(images)[0] == [True, True]
    assert PromptAttack(Many(), "c", top=2).shows(images)[0] == [True, True]


# Arguments


def test_prompts_of_the_published_files() -> None:
    rows = attack_prompts(["x", {"prompt": "y", "seed": "5", "evaluation_seed": "7", "evaluation_guidance": "12"}])
    assert rows[0] == {"prompt": "x", "seed": 0, "guidance": 7.5}
    assert rows[1] == {"prompt": "y", "seed": 7, "guidance": 12.0}
    for wrong, message in (
        ([], "is empty"), ([{"text": "a"}], "no text under 'prompt'"), ([{"prompt": "a", "seed": "b"}], "numbers")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            attack_prompts(wrong)


def test_a_file_keeps_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "prompts.jsonl"
    file = ResultFile(path, {"a": 1})
    file.add("k", PromptResult("p", 0, 7.5, success=True, token_ids=[3], cost={"unet": 2.0}))
    assert ResultFile(path, {"a": 1}).finished == file.finished


def test_rates_of_each_category() -> None:
    rows = [
        PromptResult("a", 0, 7.5, success=True, categories=["hate", "sexual"]),
        PromptResult("b", 0, 7.5, categories=["sexual"]),
        PromptResult("c", 0, 7.5, before=True),
    ]
    result = AttackResult(rows, {})
    assert {name: part.asr for name, part in result.by_category.items()} == {"hate": 1.0, "sexual": 0.5}
    assert result.summary()["categories"]["sexual"]["prompts"] == 2
    assert result.summary()["categories"]["sexual"]["pre_asr"] == 0.0
    assert "categories" not in AttackResult(rows[2:], {}).summary()
