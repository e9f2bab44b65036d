"""The report: what it stores, what it says, and that it survives bad numbers, bad text and bad disks."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.core.evaluation import Answer, Evaluation
from lightning_unlearn.report.html import accuracy, headline, question_sets, render
from lightning_unlearn.report.model import UnlearnReport


def answers(name: str, marks: str) -> list[Answer]:
    """One answer a mark: ``+`` correct, ``-`` wrong, ``?`` not judged."""
    judged = {"+": True, "-": False, "?": None}
    return [Answer(name, f"{name} {i}?", "yes", f"said {i}", judged[mark]) for i, mark in enumerate(marks)]


def evaluation(step: int, metrics: dict[str, float] | None = None, **marks: str) -> Evaluation:
    return Evaluation(step, metrics or {}, [answer for name in marks for answer in answers(name, marks[name])])


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
    original.write(tmp_path)
    assert UnlearnReport.read(tmp_path) == UnlearnReport.read(tmp_path / "report.json") == original
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json"]


def test_json_keys() -> None:
    record = report().to_dict()
    assert list(record) == [
        *("method", "seed", "model", "model_sha256", "data_sha256", "seconds", "peak_memory_bytes", "settings"),
        *("before", "after", "curves", "library_version", "created"),
    ]
    assert list(record["before"]) == ["step", "forget_accuracy", "forget_nll", "answers"]
    assert list(record["before"]["answers"][0]) == ["set", "question", "expected", "text", "correct"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["created"])


def test_wrong_keys_are_named() -> None:
    record = report().to_dict() | {"colour": "red"}
    del record["seed"]
    with pytest.raises(ValueError, match=r"missing keys \['seed'\], unknown keys \['colour'\]"):
        UnlearnReport.from_dict(record)


def test_metric_cannot_take_a_key_of_the_layout() -> None:
    with pytest.raises(ValueError, match="'step'"):
        report(before=Evaluation(0, {"step": 1.0})).to_dict()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values(tmp_path: Path, value: float) -> None:
    after = evaluation(80, {"forget_nll": value, "utility": value})
    report(after=after, curves=[after], settings={"clip": value}).write(tmp_path)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    record = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert record["after"]["forget_nll"] is record["settings"]["clip"] is record["curves"][0]["forget_nll"] is None
    assert math.isnan(UnlearnReport.read(tmp_path).after.metrics["forget_nll"])
    assert render(report(after=after)).count("not finite") == 3  # forget_nll, utility, the definition


def test_failed_write_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report().write(tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        report(seed=7).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_without_its_extra_html_says_what_to_install_and_json_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=re.escape('pip install "lightning-unlearn[report]"')):
        report().write(tmp_path)
    assert UnlearnReport.read(tmp_path) == report(created=UnlearnReport.read(tmp_path).created)


def test_import_is_light() -> None:
    code = (
        "import sys, lightning_unlearn; loaded = set(sys.modules); import lightning_unlearn.report; "
        "print({'matplotlib', 'jinja2'} & (set(sys.modules) - loaded))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


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
    assert "forget should get worse 4 → 1 of 4 correct NLL 0.40 → 6.12 retain should stay 3 → 3 of 4 correct" in words
    assert "Peak memory1.50 GiB" in words


def test_forget_and_retain_come_first() -> None:
    before = evaluation(0, {"retain_nll": 1.0, "heldout_accuracy": 1.0}, general="+", forget="+")
    names = question_sets(report(before=before, after=evaluation(0), curves=[]))
    assert names == ["forget", "retain", "general", "heldout"]


def test_text_of_the_model_is_escaped() -> None:
    attack = "<script>alert(1)</script>"
    hostile = Evaluation(0, {f"{attack}_nll": 1.0}, [Answer(attack, attack, attack, attack, True)])
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
