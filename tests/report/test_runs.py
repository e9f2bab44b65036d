"""Reports of single runs: what they say of each set, in words, curves and examples."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from lightning_unlearn.core.evaluation import Evaluation, Example
from lightning_unlearn.report.html import render_html
from lightning_unlearn.report.images import png
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.runs import attack_section, run_report, sentence, set_names
from lightning_unlearn.report.schema import report_schema
from lightning_unlearn.report.sections import Curve, Examples, ImageRow, Images, Section
from lightning_unlearn.report.write import write_report


def examples(name: str, marks: str) -> list[Example]:
    """One example a mark: ``+`` a hit, ``-`` a miss, ``?`` not judged."""
    judged = {"+": True, "-": False, "?": None}
    return [Example(name, f"{name} {i}?", "yes", f"said {i}", judged[mark]) for i, mark in enumerate(marks)]


def evaluation(step: int, metrics: dict[str, float] | None = None, **marks: str) -> Evaluation:
    rows = [example for name in marks for example in examples(name, marks[name])]
    return Evaluation(step, metrics or {}, rows, hit_means="answered correctly")


BEFORE = evaluation(0, {"forget_accuracy": 1.0, "forget_nll": 0.4}, forget="++++", retain="+++-")
AFTER = evaluation(80, {"forget_accuracy": 0.25, "forget_nll": 6.125}, forget="+---", retain="++-+")
CURVES = [Evaluation(step, {"forget_nll": step / 10, "retain_nll": 0.2}) for step in (0, 40, 80)]


def report(before: Evaluation = BEFORE, after: Evaluation = AFTER, **changes: Any) -> UnlearningReport:
    return run_report("SimNPO", "SmolLM2-135M-Instruct", before, after, **({"curves": CURVES} | changes))


def words(page: str) -> str:
    body = page[page.index("<body>") :]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_what_a_run_changed() -> None:
    whole = report(settings={"beta": 2.5}, provenance={"seed": 42}, seconds=98.25, peak_memory_bytes=3 * 2**29)
    found = {part.key: (part.anchors.original, part.value, part.n) for part in whole.section("outcome").measurements}
    assert found == {
        "forget (answered correctly)": (4.0, 1.0, 4),
        "forget (NLL)": (0.4, 6.125, None),
        "retain (answered correctly)": (3.0, 3.0, 4),
    }
    assert whole.measurement("outcome", "forget", "NLL").better == "higher"
    (curve,) = whole.section("curves").parts
    assert isinstance(curve, Curve)
    assert {series.name: series.y for series in curve.series} == {"forget": [0.0, 4.0, 8.0], "retain": [0.2] * 3}
    parts = whole.section("examples").parts
    assert [part.title for part in parts if isinstance(part, Examples)] == ["forget", "retain"]
    assert whole.subject == {"method": "SimNPO", "model": "SmolLM2-135M-Instruct", "training steps": 80}
    assert whole.provenance == {"seed": 42, "settings": {"beta": 2.5}}
    text = words(render_html(whole))
    assert text.count("1 of 4") == 2
    assert "training time 98.2 s lower peak memory 1.50 GiB lower" in text
    jsonschema.validate(json.loads(json.dumps(whole.to_dict())), report_schema())


def test_files(tmp_path: Path) -> None:
    write_report(report(), tmp_path, show_text=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    assert UnlearningReport.read(tmp_path).sections == report().sections


@pytest.mark.parametrize(
    ("before", "after", "expected"),
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
def test_sentence(before: Evaluation, after: Evaluation, expected: str) -> None:
    assert sentence("SimNPO", "tiny", before, after) == report(before, after).title == expected


def test_forget_and_retain_come_first() -> None:
    before = evaluation(0, {"retain_nll": 1.0, "heldout_accuracy": 1.0}, general="+", forget="+")
    assert set_names([before, evaluation(0)]) == ["forget", "retain", "general", "heldout"]


@pytest.mark.parametrize(
    "changes",
    [
        {"before": evaluation(0), "after": evaluation(0), "curves": []},
        {"before": evaluation(0, {"a_nll": 1.0}), "after": evaluation(5, {"b_accuracy": 0.5}, c="?")},
        {"curves": [Evaluation(3, {"forget_nll": 1.0, "forget_accuracy": 1.0})]},
        {"curves": [Evaluation(0, {"$x_1$ <&> 语言_nll": math.inf}), Evaluation(1, {"$x_1$ <&> 语言_nll": 0.0})]},
        {"curves": [Evaluation(0, {f"set {i}_nll": 1.0 for i in range(20)})]},
        {"before": Evaluation(0, {"utility": math.nan}), "after": Evaluation(5, {"utility": math.inf})},
    ],
    ids=["nothing", "metrics missing", "one point", "odd names", "many sets", "not finite"],
)
@pytest.mark.filterwarnings("error")
def test_an_incomplete_run_has_a_page(changes: dict[str, Any]) -> None:
    whole = report(**changes)
    jsonschema.validate(json.loads(json.dumps(whole.to_dict(), allow_nan=False)), report_schema())
    assert render_html(whole).rstrip().endswith("</html>")


def attacked(images: bool = True) -> Section:
    outcomes = [("a disk", "a disk", True), ("a ring", "hoop <b> a ring", True), ("a box", "x a box", False)]
    found = [Example("attack", prompt, "ember", adversarial, hit) for prompt, adversarial, hit in outcomes]
    rates = Evaluation(7, {"pre_asr": 1 / 3, "asr": 2 / 3}, found, hit_means="concept shown")
    pictures = [png(torch.full((3, 8, 8), shade)) for shade in (0.25, 0.5, 0.75)]
    return attack_section("UnlearnDiffAtk", "33% without and 67% with it.", rates, pictures if images else [])


def grid(title: str) -> Images:
    rows = [ImageRow(style, [png(i) for i in torch.rand(3, 3, 8, 8)]) for style in ("ember", "photo")]
    return Images(title, ["disk", "ring", "box"], rows)


def test_a_model_that_draws() -> None:
    grids = [grid("Before"), grid("After")]
    whole = report(
        Evaluation(0, {"forget_accuracy": 1.0, "objects_accuracy": 0.5}, hit_means="drawn as asked"),
        Evaluation(7, {"forget_accuracy": 0.1, "objects_accuracy": 0.5}, hit_means="drawn as asked"),
        curves=[],
        title="ESD erases the style “ember”",
        sections=[Section("images", "Images, before and after", grids), attacked()],
        terms={"objects": "The cross-domain retain accuracy."},
    )
    page = render_html(whole)
    shown = re.findall(r'src="([^"]+)"', page)
    gallery = whole.section("attack-unlearndiffatk").parts[-1]
    assert isinstance(gallery, Images)
    assert shown == [*(i for part in grids for row in part.rows for i in row.images), *gallery.rows[0].images]
    text = words(page)
    assert "ESD erases the style “ember” method SimNPO model SmolLM2-135M-Instruct training steps 7" in text
    assert "forget drawn as asked 100.0 % 10.0 % lower objects drawn as asked 50.0 % 50.0 % higher" in text
    assert "Under attack: UnlearnDiffAtk 33% without and 67% with it." in text
    assert "a disk shows it without an attack hoop &lt;b&gt; a ring came back x a box stays erased" in text
    assert "objects The cross-domain retain accuracy." in text
    assert page.count("<b>") == 0
    assert "facts" not in text
    assert UnlearningReport.from_dict(whole.to_dict()) == whole


def test_an_attack_without_images_is_shown_in_words() -> None:
    page = render_html(report(sections=[attacked(images=False)]))
    assert "<img" not in page
    assert "stays erased" in page


def test_a_successful_attack_is_no_right_answer() -> None:
    """The history of ``UnlearnDiffAtk`` makes a page that says what came back, not what was answered correctly."""
    outcomes = [Example("attack", f"prompt {i}", "ember", "found", i < 2) for i in range(3)]
    before, after = (Evaluation(step, {}, outcomes, hit_means="concept shown") for step in (0, 7))
    page = render_html(report(before, after, curves=[before, after]))
    text = words(page)
    assert "attack concept shown 2 of 3 2 of 3 lower" in text
    assert page.count('aria-label="concept shown"') == 4
    assert page.count('aria-label="not concept shown"') == 2
    assert "correct" not in text
    assert "facts" not in text
