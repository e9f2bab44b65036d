"""UnlearnCanvas on the miniature: methods, settings, runs and their record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import LitTextToImage
from lightning_unlearn.benchmarks import canvas_runs
from lightning_unlearn.benchmarks.canvas_methods import METHODS, PUBLISHED
from lightning_unlearn.benchmarks.canvas_settings import AnswerSettings, CanvasTests, pair_of
from lightning_unlearn.benchmarks.erasers import ERASERS
from lightning_unlearn.benchmarks.miniature import SEARCH
from lightning_unlearn.benchmarks.requests import request
from lightning_unlearn.benchmarks.unlearncanvas import bench_canvas
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, miniature_pipeline
from lightning_unlearn.diffusion.engine.text import encode, tokenize


def test_the_methods_are_the_nine_of_the_study_and_three_more_with_the_settings_of_the_other_benchmark() -> None:
    assert list(METHODS) == [*PUBLISHED, "AdvUnlearn", "MACE", "RECE"]
    assert all(method.eraser in ERASERS for method in METHODS.values())
    assert [name for name, method in METHODS.items() if not method.eraser.callbacks] == ["SEOT"]
    assert [name for name, method in METHODS.items() if method.guard] == ["SEOT"]


def test_settings_are_checked_before_anything_runs(tmp_path: Path) -> None:
    assert pair_of("ember x ring") == ("ember", "ring")
    for pair in ("ring x ember", "ember ring", "ember x van gogh", "photo x ring"):
        with pytest.raises(ValueError, match=r"written '<style> x <object>', as in 'ember x ring', but got"):
            CanvasTests(pairs=(pair,))
    with pytest.raises(ValueError, match="each target once"):
        CanvasTests(sequence=("ember", "ring", "ember"))
    with pytest.raises(ValueError, match=r"target must be .* but got 'photo'"):
        CanvasTests(sequence=("photo",))
    with pytest.raises(ValueError, match="image of each seed"):
        AnswerSettings(seeds=(1, 1))
    for arguments, message in (
        ({"methods": ["magic"]}, r"no methods \['magic'\]"),
        ({"targets": ["photo"]}, r"no targets \['photo'\]"),
        ({"names": 4}, "names must be"),
        ({"methods": ["UCE"], "seeds_of": {"ESD": [0]}}, r"no methods \['ESD'\] among those that are run"),
    ):
        with pytest.raises(ValueError, match=message):
            bench_canvas(str(tmp_path), **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["negative", "box"])
def test_rows_of_a_later_request_have_nothing_that_earlier_ones_erased(target: str) -> None:
    gone = ["ember", "ring", "sketch"]
    asked = request(target, names=1, gone=gone)
    texts = [row.get("caption") or row["prompt"] for rows in (asked.forget, asked.retain) for row in rows]
    texts += [row["caption"] for rows in (asked.forget_images, asked.retain_images) for row in rows]
    erased = {word for name in gone for word in {**STYLES, **OBJECTS}[name]}
    assert texts
    assert not {word for text in texts for word in text.split()} & erased
    looks, things = list(STYLES), list(OBJECTS)
    shown = [row for rows in (asked.forget_images, asked.retain_images) for row in rows]
    assert not {looks[row["style"]] for row in shown} & set(gone)
    assert not {things[row["object"]] for row in shown} & set(gone)
    assert concept(target).after([]) == concept(target)


def test_a_guard_suppresses_the_concepts_of_all_requests_and_changes_no_weight() -> None:
    base = LitTextToImage(str(miniature_pipeline())).eval()

    def states(module: Any, *prompts: str) -> torch.Tensor:
        with torch.no_grad():
            return encode(module, tokenize(module.tokenizer, prompts)["input_ids"])

    prompts = ("a box image in ember style", "a ring image in photo style", "a box image in mosaic style")
    seot = METHODS["SEOT"]
    with canvas_runs._unlearned(seot, ["ember", "ring"], seed=0, names=1) as (module, cost):
        moved = [bool((a != b).any()) for a, b in zip(states(module, *prompts), states(base, *prompts), strict=True)]
    assert moved == [True, True, False]
    assert torch.equal(states(module, *prompts), states(base, *prompts))
    assert canvas_runs._changed_bytes(module, base) == 0
    assert (cost["unet_rows"], cost["steps"]) == (0, 0)
    assert cost["peak_memory_bytes"] > 1e8


def test_what_is_kept_of_a_model_is_the_weights_that_differ() -> None:
    base, module = (LitTextToImage(str(miniature_pipeline())) for _ in range(2))
    first, second, *_ = module.parameters()
    with torch.no_grad():
        first[0] += 1
        second.view(-1)[-1] += 1
    assert canvas_runs._changed_bytes(module, base) == 4 * (first.numel() + second.numel())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_pair_and_a_later_request(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    short = replace(method, eraser=replace(method.eraser, steps=min(method.eraser.steps, 1), batch_size=2))
    base = LitTextToImage(str(miniature_pipeline()))
    for targets in ([("ember", "ring")], ["negative", "box"]):
        with canvas_runs._unlearned(short, targets, seed=0, names=1) as (module, cost):
            assert (canvas_runs._changed_bytes(module, base) > 0) == (method.guard is None)
            assert cost["steps"] == (1 if name not in ("UCE", "RECE", "SEOT") else 0)
            module.save_pretrained(tmp_path / targets[-1][0])
            again = LitTextToImage(str(tmp_path / targets[-1][0]))
            assert canvas_runs._changed_bytes(again, module) == 0


SMALL: dict[str, Any] = {
    "methods": ["UCE", "SEOT"],
    "targets": ["ember"],
    "seeds": [0],
    "answers": AnswerSettings(seeds=(188,), steps=1, guidance=1.0, keep_images=True),
    "workers": 0,
}


@pytest.mark.slow
def test_the_whole_benchmark_runs_resumes_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SEARCH, "levels", 1)
    monkeypatch.setitem(SEARCH, "iterations", 1)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    more = CanvasTests(attacked=1, pairs=("ember x ring",), pair_images=3, sequence=("ember", "ring"))
    record = bench_canvas(str(tmp_path), tests=more, wandb_project="canvas", **SMALL)
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert json.loads((tmp_path / "canvas.json").read_text()) == record
    assert "UCE" in capsys.readouterr().out
    for name in ("report.html", "report.md", "report.json", "summary.csv", "matrices/uce.csv", "matrices/seot.csv"):
        assert (tmp_path / name).stat().st_size > 100
    assert (record["names"], record["seeds"]) == ("mini", [188])
    (uce,), (seot,) = (record["methods"][name]["ember"] for name in ("UCE", "SEOT"))
    assert uce["storage_bytes"] > seot["storage_bytes"] == 0
    for run in (uce, seot):
        assert run["seed"] == 0
        assert run["FID"] > 0
        assert {"pre_asr", "asr", "random_asr"} == set(run["attack"])
        assert all(0 <= hits <= n == 1 for hits, n in run["attack"].values())
        assert {"name", "variant", "free", "superclass"} <= set(run["families"])
        assert run["side_effects"]["labels"] == 6
        scores = AnswerScores.read(tmp_path / run["scores"], MINI_CANVAS)
        assert scores.missing(photo=True) == []
        assert len(list((tmp_path / run["answers"]).glob("*.png"))) == 6 * 5
    assert uce["FID_base"] > 0
    for method in ("UCE", "SEOT"):
        (pair,), (sequence,) = record["pairs"][method]["ember x ring"], record["sequential"][method]
        scores = AnswerScores.read(tmp_path / pair["scores"], MINI_CANVAS)
        counts = scores.seen.sum(2)
        at = (MINI_CANVAS.styles.index("ember"), MINI_CANVAS.objects.index("ring"))
        assert (int(counts[at]), int(counts.sum())) == (3, 32)
        assert sequence["targets"] == ["ember", "ring"]
        assert len({*sequence["scores"]}) == 2
        assert all(AnswerScores.read(tmp_path / path, MINI_CANVAS).missing() == [] for path in sequence["scores"])

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(times) == 1 + 1 + 2 + 2 + 2
    assert bench_canvas(str(tmp_path), tests=more, **SMALL) == record
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == times
