"""``lightning-unlearn canvas``."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser, auto_cli
from PIL import Image

from lightning_unlearn.benchmarks.canvas_folders import folder_results
from lightning_unlearn.benchmarks.canvas_methods import METHODS
from lightning_unlearn.benchmarks.unlearncanvas import bench_canvas
from lightning_unlearn.cli import canvas
from lightning_unlearn.diffusion.canvas.export import export_mini_canvas
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS
from lightning_unlearn.diffusion.data.miniature import render

ROOT = Path(__file__).parents[2]


def run(command: Any, *words: Any) -> None:
    auto_cli(command, args=[*map(str, words)], as_positional=False)


def drawn(folder: Path, erased: str | None = None) -> Path:
    """An answer set without a model: rendered images, of the erased style photos."""
    folder.mkdir(parents=True)
    for style, object in MINI_CANVAS.pairs(photo=True):
        for seed in (188, 288):
            image = render(object, "photo" if style == erased else style, 5000 + seed)
            pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(np.asarray(pixels)).save(folder / MINI_CANVAS.file_name(style, object, seed, ".png"))
    return folder


def test_answer_sets_of_others_are_scored_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_mini_canvas(tmp_path / "data", images=5, suffix=".png")
    root = tmp_path / "sets"
    options = ("--names=mini", "--judges=miniature", "--device=cpu", "--workers=1")
    with pytest.raises(FileNotFoundError, match=r"has no answer set of a method. They are expected as .*/ESD/stripes"):
        folder_results(drawn(root / "None").parent, "mini", root)
    run(canvas.score, f"--folder={root / 'None'}", f"--reference={tmp_path / 'data'}", *options)
    assert "Before unlearning, if stripes were to go: UA " in capsys.readouterr().out
    hand = drawn(root / "Hand" / "ember", erased="ember")
    with pytest.raises(FileNotFoundError, match=r"ember has no scores.csv. Judge its images first"):
        canvas.report(str(root), names="mini")
    reference = root / "None" / "reference.safetensors"
    run(canvas.score, f"--folder={hand}", "--target=ember", f"--reference={reference}", *options)
    text = capsys.readouterr().out
    assert "ember: UA 100.00%" in text
    assert "FID " in text

    record = folder_results(root, "mini", tmp_path / "out")
    (only,) = record["methods"]["Hand"]["ember"]
    assert only["scores"] == "../sets/Hand/ember/scores.csv"
    assert only["FID"] > 0
    assert record["seeds"] == [188, 288]
    run(canvas.report, f"--root={root}", f"--output_dir={tmp_path / 'out'}", "--names=mini")
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = {(row["method"], row["kind"], row["measure"]): float(row["value"]) for row in csv.DictReader(file)}
    assert rows["Hand", "style", "UA"] == 1
    assert rows["Hand", "style", "IRA"] >= 0.9
    assert rows["None", "style", "UA"] <= 0.2
    assert "Hand" in (tmp_path / "out" / "report.html").read_text()


def test_runs_of_several_seeds_and_strange_names_in_folders(tmp_path: Path) -> None:
    for place in ("None", "A/ember/0", "A/ember/1", "A/ring"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "scores.csv").write_text(
            "style,object,seed,predicted_style,predicted_object\nember,ring,188,ember,ring\n"
        )
    record = folder_results(tmp_path, "mini", tmp_path)
    assert [run["seed"] for run in record["methods"]["A"]["ember"]] == [0, 1]
    assert [run["scores"] for run in record["methods"]["A"]["ring"]] == ["A/ring/scores.csv"]
    (tmp_path / "A" / "van gogh").mkdir()
    with pytest.raises(ValueError, match=r"target must be .* but got 'van gogh'"):
        folder_results(tmp_path, "mini", tmp_path)


def test_processes_share_an_answer_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers"
    options = [f"--output_dir={out}", "--model=miniature", "--names=mini", "--seeds=[188]", "--steps=1"]
    options += ["--guidance=1", "--batch_size=30", "--suffix=.png", "--device=cpu"]
    run(canvas.sample, *options, "--part=[0, 2]")
    assert len(list(out.glob("*.png"))) == 15
    monkeypatch.setenv("RANK", "1")  # as torchrun sets them
    monkeypatch.setenv("WORLD_SIZE", "2")
    run(canvas.sample, *options)
    assert len(list(out.glob("*.png"))) == 30
    monkeypatch.undo()
    run(canvas.sample, *options)
    assert capsys.readouterr().out.splitlines()[-1] == f"Drew 0 images into {out}."
    with pytest.raises(ValueError, match="another model or other settings"):
        run(canvas.sample, *options, "--precision=bf16")


def test_what_is_given_twice_or_not_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Give one of model and ckpt_path"):
        canvas.sample(str(tmp_path))
    with pytest.raises(ValueError, match="Give one of model and ckpt_path"):
        canvas.sample(str(tmp_path), model="a", ckpt_path="b")
    for judges in ({}, {"judges": "a", "style_judge": "b", "object_judge": "c"}, {"style_judge": "b"}):
        with pytest.raises(ValueError, match="Give judges, or both style_judge and object_judge"):
            canvas.score(str(tmp_path), **judges)


def test_each_run_of_the_sweep_is_a_command_and_together_they_are_the_benchmark() -> None:
    sweep = yaml.safe_load((ROOT / "examples" / "sweeps" / "unlearncanvas.yaml").read_text())
    assert sweep["command"][:3] == ["lightning-unlearn", "canvas", "run"]
    assert sweep["command"][-1] == "${args}"
    parser = ArgumentParser()
    parser.add_function_arguments(bench_canvas)
    default = parser.parse_args([])
    found = set()
    for values in product(*(parameter["values"] for parameter in sweep["parameters"].values())):
        given = [f"--{name}={value}" for name, value in zip(sweep["parameters"], values, strict=True)]
        arguments = parser.parse_args([*sweep["command"][3:-1], *given])
        found.add((*arguments.methods, *arguments.targets))
    assert found == set(product(METHODS, default.targets))
