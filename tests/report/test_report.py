"""The report: what it stores, what it says, and that it survives bad numbers, bad text and bad disks."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_unlearn.core.evaluation import Evaluation, Example
from lightning_unlearn.report.html import accuracy, headline, render, set_names, write_report
from lightning_unlearn.report.images import png
from lightning_unlearn.report.model import Attack, ImageGrid, UnlearnReport


def examples(name: str, marks: str) -> list[Example]:
    """One example a mark: ``+`` a hit, ``-`` a miss, ``?`` not judged."""
    judged = {"+": True, "-": False, "?": None}
    return [Example(name, f"{name} {i}?", "yes", f"said {i}", judged[mark]) for i, mark in enumerate(marks)]


def evaluation(step: int, metrics: dict[str, float] | None = None, **marks: str) -> Evaluation:
    rows = [example for name in marks for example in examples(name, marks[name])]
    return Evaluation(step, metrics or {}, rows, hit_means="answered correctly")


def report(**changes: Any) -> UnlearnReport:
    whole = UnlearnReport(
        method="SimNPO",
        seed=42,
        model="SmolLM2-135M-Instruct",
        model_sha256="ab" * 32,
        data_sha256="cd" * 32,
        seconds=192.4,
        peak_memory_bytes=3 * 2**29,
        settings={"beta": 2.5, "target_modules": ["q_proj"], "scheduler": {"warmup": 8}, "clip": None},
        before=evaluation(0, {"forget_accuracy": 1.0, "forget_nll": 0.4}, forget="++++", retain="+++-"),
        after=evaluation(80, {"forget_accuracy": 0.25, "forget_nll": 6.125}, forget="+---", retain="++-+"),
        curves=[Evaluation(step, {"forget_nll": step / 10, "retain_nll": 0.2}) for step in (0, 40, 80)],
    )
    return replace(whole, **changes)


def test_round_trip(tmp_path: Path) -> None:
    original = report()
    assert UnlearnReport.from_dict(original.to_dict()) == original
    write_report(original, tmp_path, show_answers=True)
    assert UnlearnReport.read(tmp_path) == UnlearnReport.read(tmp_path / "report.json") == original
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json"]


def test_json_keys() -> None:
    record = report().to_dict()
    assert list(record) == [
        *("method", "seed", "model", "model_sha256", "data_sha256", "seconds", "settings", "before", "after"),
        *("title", "peak_memory_bytes", "curves", "images", "attacks", "notes", "environment", "created"),
    ]
    assert list(record["before"]) == ["step", "metrics", "examples", "hit_means"]
    assert list(record["before"]["metrics"]) == ["forget_accuracy", "forget_nll"]
    assert list(record["before"]["examples"][0]) == ["set", "input", "expected", "output", "hit"]
    assert {"lightning-unlearn", "lightning", "torch", "python", "platform"} == record["environment"].keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["created"])


def test_wrong_keys_are_named() -> None:
    record = report().to_dict() | {"colour": "red"}
    del record["seed"]
    with pytest.raises(ValueError, match=r"missing keys \['seed'\], unknown keys \['colour'\]"):
        UnlearnReport.from_dict(record)


def test_metric_may_have_a_name_of_the_layout() -> None:
    whole = report(before=Evaluation(0, {"step": 1.0, "examples": 2.0}))
    assert UnlearnReport.from_dict(whole.to_dict()) == whole


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values(tmp_path: Path, value: float) -> None:
    after = evaluation(80, {"forget_nll": value, "utility": value})
    write_report(report(after=after, curves=[after], settings={"clip": value}), tmp_path)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    record = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert record["after"]["metrics"]["forget_nll"] is record["settings"]["clip"] is None
    assert record["curves"][0]["metrics"]["forget_nll"] is None
    assert math.isnan(UnlearnReport.read(tmp_path).after.metrics["forget_nll"])
    assert render(report(after=after)).count("not finite") == 3  # forget_nll, utility, the definition


def test_failed_write_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(report(), tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(report(seed=7), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_without_its_extra_html_says_what_to_install_and_json_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=re.escape('pip install "lightning-unlearn[report]"')):
        write_report(report(), tmp_path, show_answers=True)
    assert UnlearnReport.read(tmp_path) == report(created=UnlearnReport.read(tmp_path).created)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            evaluation(0, forget="+" * 12, retain="+" * 12),
            evaluation(80, forget="-" * 12, retain="+" * 12),
            "SimNPO made the model forget 12 of 12 facts and kept 12 of 12.",
        ),
        (  # a fact that was never known is not forgotten, and one that is new was not kept
            evaluation(0, forget="++-", retain="+-?"),
            evaluation(80, forget="+--", retain="-+?"),
            "SimNPO made the model forget 1 of 2 facts and kept 0 of 1.",
        ),
        (
            evaluation(0, forget="+"),
            evaluation(80, forget="-"),
            "SimNPO made the model forget 1 of 1 facts.",
        ),
        (
            evaluation(0, forget="--"),
            evaluation(80, forget="--"),
            "The model knew none of the facts to forget, even before SimNPO.",
        ),
        (  # two answers kept of many: they cannot stand for the accuracy
            evaluation(0, {"forget_accuracy": 0.99}, forget="++"),
            evaluation(80, {"forget_accuracy": 0.02}, forget="--"),
            "SimNPO moved the accuracy on the facts to forget from 99% to 2%.",
        ),
        (
            evaluation(0, {"forget_accuracy": math.nan}),
            evaluation(80, {"forget_accuracy": 0.0}),
            "What the model knew before and after SimNPO.",
        ),
        (evaluation(0), evaluation(0), "What the model knew before and after SimNPO."),
    ],
)
def test_headline(before: Evaluation, after: Evaluation, sentence: str) -> None:
    assert headline(report(before=before, after=after)) == sentence


def test_figures_of_a_set() -> None:
    assert accuracy(report(), "forget") == ("4", "1", "of 4")
    assert accuracy(report(), "retain") == ("3", "3", "of 4")
    assert accuracy(report(), "absent") == ("–", "–", "")
    words = " ".join(re.sub(r"<[^>]*>", "", render(report())).split())
    assert "forget should get worse 4 → 1 of 4 answered correctly NLL 0.40 → 6.12" in words
    assert "retain should stay 3 → 3 of 4 answered correctly" in words
    assert "Peak memory1.50 GiB" in words


def test_forget_and_retain_come_first() -> None:
    before = evaluation(0, {"retain_nll": 1.0, "heldout_accuracy": 1.0}, general="+", forget="+")
    names = set_names(report(before=before, after=evaluation(0), curves=[]))
    assert names == ["forget", "retain", "general", "heldout"]


def test_text_of_the_model_is_escaped() -> None:
    attack = "<script>alert(1)</script>"
    hostile = Evaluation(0, {f"{attack}_nll": 1.0}, [Example(attack, attack, attack, attack, True)], attack)
    page = render(
        report(method=attack, model=attack, settings={attack: attack}, before=hostile, after=hostile, curves=[hostile])
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_page_is_self_contained() -> None:
    page = render(report())
    assert "<svg" in page
    assert not re.search(r"https?:|@import|<link|<script|<img|\ssrc=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


@pytest.mark.parametrize(
    "changes",
    [
        {"before": evaluation(0), "after": evaluation(0), "curves": [], "settings": {}, "peak_memory_bytes": 0},
        {"before": evaluation(0, {"a_nll": 1.0}), "after": evaluation(5, {"b_accuracy": 0.5}, c="?")},
        {"curves": [Evaluation(3, {"forget_nll": 1.0, "forget_accuracy": 1.0})]},
        {"curves": [Evaluation(0, {"$x_1$ <&> 语言_nll": math.inf}), Evaluation(1, {"$x_1$ <&> 语言_nll": 0.0})]},
        {"curves": [Evaluation(0, {f"set {i}_nll": 1.0 for i in range(20)})]},
    ],
    ids=["nothing", "metrics missing", "one point", "odd names", "many sets"],
)
@pytest.mark.filterwarnings("error")
def test_page_of_an_incomplete_report(changes: dict[str, Any]) -> None:
    assert render(report(**changes)).rstrip().endswith("</html>")


def attack(images: bool = True) -> Attack:
    outcomes = [("a disk", "a disk", True), ("a ring", "hoop <b> a ring", True), ("a box", "x a box", False)]
    found = [Example("attack", prompt, "ember", adversarial, hit) for prompt, adversarial, hit in outcomes]
    evaluation = Evaluation(7, {"pre_asr": 1 / 3, "asr": 2 / 3}, found, hit_means="concept shown")
    pictures = [png(torch.full((3, 8, 8), shade)) for shade in (0.25, 0.5, 0.75)]
    return Attack("UnlearnDiffAtk", "33% without and 67% with it.", evaluation, pictures if images else [])


def drawn() -> UnlearnReport:
    """A report with everything that a model can have that draws."""
    grid = {side: {style: [png(i) for i in torch.rand(3, 3, 8, 8)] for style in ("ember", "photo")} for side in "ba"}
    return report(
        title="ESD erases the style “ember”",
        before=Evaluation(0, {"forget_accuracy": 1.0, "objects_accuracy": 0.5}, hit_means="drawn as asked"),
        after=Evaluation(7, {"forget_accuracy": 0.1, "objects_accuracy": 0.5}, hit_means="drawn as asked"),
        curves=[],
        images=ImageGrid(["disk", "ring", "box"], before=grid["b"], after=grid["a"]),
        attacks=[attack()],
        notes={"objects": "The cross-domain retain accuracy."},
    )


def test_images_and_attacks_are_in_the_record(tmp_path: Path) -> None:
    whole = drawn()
    write_report(whole, tmp_path, show_answers=True)
    assert UnlearnReport.read(tmp_path) == whole
    assert (tmp_path / "report.html").read_text() == render(UnlearnReport.read(tmp_path))


def test_the_page_shows_every_image_and_what_became_of_each_attacked_prompt() -> None:
    whole = drawn()
    page = render(whole)
    shown = re.findall(r'src="([^"]+)"', page)
    assert whole.images is not None
    tables = [*whole.images.before.values(), *whole.images.after.values()]
    assert shown == [*(image for row in tables for image in row), *attack().images]
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "ESD erases the style “ember” SimNPO on SmolLM2-135M-Instruct, 7 training steps" in words
    assert "forget should get worse 100% → 10% drawn as asked objects should stay 50% → 50% drawn as asked" in words
    assert "Under attack: UnlearnDiffAtk 33% without and 67% with it." in words
    assert "a disk shows it without an attack hoop &lt;b&gt; a ring came back x a box stays erased" in words
    assert "objects The cross-domain retain accuracy." in words
    assert page.count("<b>") == 0
    assert "facts" not in words


def test_an_attack_without_images_is_shown_in_words() -> None:
    page = render(replace(drawn(), images=None, attacks=[attack(images=False)]))
    assert "<img" not in page
    assert "stays erased" in page


def test_an_image_is_encoded_bit_for_bit() -> None:
    image = torch.rand(3, 8, 8)
    decoded = Image.open(io.BytesIO(base64.b64decode(png(image).partition(",")[2]))).convert("RGB")
    expected = (image.permute(1, 2, 0) * 255).round().flatten().to(torch.int64)
    assert torch.equal(torch.tensor(list(decoded.tobytes())), expected)


def test_a_successful_attack_is_no_right_answer() -> None:
    """The history of ``UnlearnDiffAtk`` makes a page that says what came back, not what was answered correctly."""
    before, after = (replace(attack().evaluation, step=step) for step in (0, 7))
    page = render(report(before=before, after=after, curves=[before, after]))
    words = " ".join(re.sub(r"<[^>]*>", "", page).split())
    assert "attack should fall 2 → 2 of 3 concept shown" in words
    assert page.count('aria-label="concept shown"') == 4
    assert page.count('aria-label="not concept shown"') == 2
    assert "correct" not in words
    assert "facts" not in words


def test_a_hit_has_a_meaning() -> None:
    with pytest.raises(ValueError, match="hit_means"):
        Evaluation(0, {}, examples("forget", "+"))
    Evaluation(0, {}, examples("forget", "?"))
