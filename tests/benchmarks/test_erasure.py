"""Concept erasure on the miniature."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import LitTextToImage
from lightning_unlearn.benchmarks.erasers import ERASERS, Eraser
from lightning_unlearn.benchmarks.erasure import bench_erasure, table
from lightning_unlearn.benchmarks.miniature import drawn, erase, erasure_rows
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, miniature_pipeline


def test_rows_of_a_style_name_it_and_its_anchor() -> None:
    forget, retain = erasure_rows("negative")
    assert forget[:3] == [
        {"prompt": f"an image in {name} style", "anchor": "an image in photo style"}
        for name in ("negative", "inverted", "xray")
    ]
    assert {"prompt": "a ring image in xray style", "anchor": "a ring image in photo style"} in forget
    assert len(forget) == 3 + 3 * len(OBJECTS)
    assert len(retain) == (len(STYLES) - 1) * len(OBJECTS)
    words = {word for row in retain for word in row["prompt"].split()}
    assert not words & set(STYLES["negative"])


def test_rows_of_an_object_name_it_and_the_next_object() -> None:
    forget, retain = erasure_rows("box")
    assert {"prompt": "a crate image in ember style", "anchor": "a wedge image in ember style"} in forget
    assert len(retain) == (len(OBJECTS) - 1) * len(STYLES)


def test_a_target_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"target must be 'photo', .*, but got 'van gogh'"):
        erasure_rows("van gogh")
    with pytest.raises(ValueError, match=r"no targets \['van gogh'\]"):
        bench_erasure(targets=["van gogh"])
    with pytest.raises(ValueError, match=r"no methods \['magic'\]"):
        bench_erasure(methods=["magic"])


@pytest.mark.slow
def test_the_miniature_draws_what_it_is_asked_for() -> None:
    base = LitTextToImage(str(miniature_pipeline())).eval()
    found = drawn(base, base, "negative", seed=0, images=1)
    assert found["UA"] <= 0.2
    assert found["IRA"] >= 0.9
    assert found["CRA"] >= 0.8
    assert found["FID"] == pytest.approx(0.0, abs=1e-2)


def test_the_miniature_is_small() -> None:
    assert sum(file.stat().st_size for file in miniature_pipeline().rglob("*") if file.is_file()) < 4e6


@pytest.mark.parametrize("eraser", ERASERS, ids=lambda eraser: eraser.name)
def test_every_method_of_the_table_moves_what_it_says(eraser: Eraser) -> None:
    if not eraser.callbacks:
        return
    short = replace(eraser, steps=min(eraser.steps, 1), batch_size=2)
    module, cost = erase(short, "ember", seed=0)
    base = LitTextToImage(str(miniature_pipeline()))
    moved = {
        name for (name, a), b in zip(module.named_parameters(), base.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert moved
    part = "text_encoder." if "text encoder" in eraser.name or eraser.trainable == "text_encoder" else "unet."
    assert all(name.startswith(part) for name in moved)
    assert cost["steps"] == (0 if eraser.name in ("UCE", "RECE") else 1)


@pytest.mark.slow
def test_the_table_pools_rates_and_the_command_resumes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": ["before", "UCE"], "targets": ["ember"], "seeds": [0], "images": 1}
    record = bench_erasure(str(tmp_path), prompts=2, workers=1, **options)
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    times = [run.stat().st_mtime_ns for run in runs]
    assert bench_erasure(str(tmp_path), prompts=2, workers=1, **options) == record
    assert [run.stat().st_mtime_ns for run in runs] == times
    assert json.loads((tmp_path / "erasure.json").read_text()) == record
    assert record["methods"]["UCE"]["ember"][0]["steps"] == 0
    assert (tmp_path / "erasure.md").read_text() == table(record)


def test_the_table_has_means_and_intervals() -> None:
    run = {"UA": 0.5, "IRA": 1.0, "CRA": 0.9, "FID": 3.0, "seconds": 10, "unet_rows": 100}
    one = {**run, "pre_asr": [1, 10], "asr": [4, 10], "random_asr": [2, 10]}
    two = {**run, "UA": 0.7, "pre_asr": [3, 10], "asr": [6, 10], "random_asr": [2, 10]}
    line = table({"methods": {"M": {"ring": [one, two]}}}).splitlines()[2]
    assert line.startswith("| M | 60.0 ± 14.1 | 100.0 ± 0.0 | 90.0 ± 0.0 | 20 [8, 42] | 50 [30, 70] | 20 [8, 42] |")
