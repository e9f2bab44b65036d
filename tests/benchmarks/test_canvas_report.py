"""Report of UnlearnCanvas: what it reads from scores, its published figures, its files, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from lightning_unlearn.benchmarks import canvas_tables
from lightning_unlearn.benchmarks.canvas_orderings import _same_sign, spearman
from lightning_unlearn.benchmarks.canvas_published import ATTACKED, PAIRS, RESULTS, published_name
from lightning_unlearn.benchmarks.canvas_report import canvas_report, write_canvas_report
from lightning_unlearn.benchmarks.canvas_results import CanvasResults
from lightning_unlearn.diffusion.canvas.counts import IncompleteAnswers
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, MINI_CANVAS, UNLEARN_CANVAS
from lightning_unlearn.diffusion.metrics.canvas import AccuracyMatrix
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.schema import report_schema
from lightning_unlearn.report.sections import Bars, Curve, Heatmap, Images, Table
from tests.benchmarks.canvas_records import FORGETTING, canvas_record
from tests.language.test_monitor import records


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], UnlearningReport]:
    folder = tmp_path_factory.mktemp("canvas")
    record = canvas_record(folder)
    names = MINI_CANVAS
    file = folder / "base/images" / names.file_name(names.styles[0], names.objects[0], ANSWER_SEEDS[0], ".png")
    file.parent.mkdir()
    Image.new("RGB", (200, 200), (10, 20, 30)).save(file)
    record["base"]["answers"] = "base/images"
    return folder, record, write_canvas_report(record, folder)


def table(report: UnlearningReport, section: str, place: int = 0) -> dict[str, dict[str, Any]]:
    """Rows of a table of a section by their first cell."""
    part = [part for part in report.section(section).parts if isinstance(part, Table)][place]
    return {str(row[0]): dict(zip(part.columns, row, strict=True)) for row in part.rows}


def test_published_figures_have_the_means_and_correlations_of_the_study() -> None:
    means = [mean(row[place] for row in RESULTS.values()) for place in range(6)]
    assert [round(value, 2) for value in means] == [82.07, 80.64, 76.32, 69.73, 81.53, 68.31]
    for kind, rho in (("style", -0.70), ("object", -0.43)):
        shares = [row.shares(kind) for row in RESULTS.values()]
        assert round(spearman([row["UA"] for row in shares], [row["IRA"] for row in shares]), 2) == rho
    assert all(
        row.style_attacked < row.style_clean and row.object_attacked < row.object_clean for row in ATTACKED.values()
    )
    assert all(max(row.sc, row.oc) < row.up for row in PAIRS.values())
    assert PAIRS.keys() == RESULTS.keys() == ATTACKED.keys() | {"SEOT"}
    for name, row in ATTACKED.items():  # two figures of the study, the one rounded
        assert (row.style_clean, row.object_clean) == pytest.approx(RESULTS[name][:4:3], abs=0.051)


@pytest.mark.parametrize(
    ("method", "name"),
    [("ESD-x", "ESD"), ("ConceptAblation", "CA"), ("EraseDiff", "EDiff"), ("scissorhands", "SHS"), ("ESD-u", None)],
)
def test_methods_are_found_by_the_names_of_their_callbacks(method: str, name: str | None) -> None:
    assert published_name(method) == name


def test_the_report_is_one_of_the_layout(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    folder, _, report = written
    ids = [section.id for section in report.sections]
    assert ids[:5] == ["summary", "trade-off", "bars", "orderings", "attack"]
    assert ids[5:] == ["pairs", "sequential", "beyond", "images", "method-esd", "method-uce", "method-conceptablation"]
    record = json.loads((folder / "report.json").read_text())
    jsonschema.Draft202012Validator(report_schema()).validate(record)
    assert UnlearningReport.from_dict(record) == report
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 + 2 + 1 + 2 + 1  # trade-off, shares, FID, attacks, sequences


def test_heat_maps_and_summary_are_read_from_the_scores(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    folder, record, report = written
    results = CanvasResults(record, folder)
    matrices = results.matrices["ESD"]
    assert list(matrices) == [0, 1]
    heat = report.section("method-esd").parts[0]
    assert isinstance(heat, Heatmap)
    assert heat.rows == ["None", *matrices[0].targets]
    assert heat.values[0] == matrices[0].row().tolist()
    expected = (matrices[0].row("stripes") + matrices[1].row("stripes")) / 2
    assert heat.values[1] == expected.tolist()
    assert [(heat.rows[row], heat.columns[column]) for row, column in heat.marked] == [
        (t, t) for t in matrices[0].targets
    ]
    shown = [m.read_out(t)["UA"] for m in matrices.values() for t in ("stripes", "negative")]
    part = report.measurement("method-esd", "UA", "styles")
    assert (part.value, part.n) == (pytest.approx(mean(shown)), 4)
    assert part.interval is not None
    bounds: list[Any] = [part.interval.low, part.value, part.interval.high]
    assert [min(shown), *bounds, max(shown)] == sorted([min(shown), *bounds, max(shown)])
    assert part.anchors.original == pytest.approx(
        mean(1 - float(matrices[0].row()[MINI_CANVAS.styles.index(t)]) for t in ("stripes", "negative"))
    )
    assert table(report, "summary")["ESD"]["UA ↑"].startswith(f"{100 * mean(shown):.1f} [")
    assert table(report, "summary")["ESD"]["FID ↓"] == "20.5 [20.0,\u00a021.0]"
    assert table(report, "summary", 2)["UCE"]["time of a request"] == "25 s"
    bars = report.section("bars").parts[0]
    assert isinstance(bars, Bars)
    assert bars.names == ["before erasure", *FORGETTING]
    assert bars.series[0].values[1] == pytest.approx(mean(shown))


def test_what_images_of_a_target_show(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    folder, record, report = written
    heat = report.section("method-esd").parts[1]
    assert isinstance(heat, Heatmap)
    assert heat.columns == list(MINI_CANVAS.all_styles)
    assert [sum(row) for row in heat.values] == pytest.approx([1, 1])  # type: ignore[arg-type]
    runs = CanvasResults(record, folder).runs("ESD", "style")
    own = torch.stack([run.scores.style_right[0].double().mean() for run in runs if run.target == "stripes"]).mean()
    assert heat.values[0][0] == pytest.approx(float(own))
    assert heat.values[0][1] == pytest.approx(1 - float(own))  # all that is wrong is the next label


def test_the_front_has_the_methods_that_no_other_beats(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    curve = written[2].section("trade-off").parts[0]
    assert isinstance(curve, Curve)
    assert [series.name for series in curve.series] == [*FORGETTING, "before erasure", "Pareto front"]
    assert curve.note.endswith(": ESD, ConceptAblation.")
    assert curve.series[-1].x == sorted([curve.series[0].x[0], curve.series[2].x[0]])


def test_attacks_pairs_and_sequences(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    report = written[2]
    attacked = table(report, "attack")["UCE"]
    assert (attacked["prompts"], attacked["UA, no attack"][:5], attacked["UA, UnlearnDiffAtk"]) == (
        *(40, "90.0 "),
        "50.0 [35.2,\u00a064.8]",  # Wilson's interval of 20 in 40
    )
    assert report.measurement("method-uce", "ASR", "styles").value == 0.5
    pair = table(report, "pairs")["ESD"]
    assert pair["runs"] == 1
    assert report.measurement("method-esd", "UA", "pairs").value == pytest.approx(float(pair["UA ↑"].split()[0]) / 100)
    curve = report.section("sequential").parts[1]
    assert isinstance(curve, Curve)
    for series in curve.series:
        values: list[Any] = list(series.y)
        assert values[0] > values[2]
    heat = report.section("sequential").parts[2]
    assert isinstance(heat, Heatmap)
    assert heat.values[1][0] is None
    assert heat.columns == ["1. stripes", "2. disk", "3. negative"]


def test_families_and_side_effects(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    asked, changed = (table(written[2], "beyond", place)["ESD"] for place in (0, 2))
    assert (asked["name"][:5], asked["variant"][:4], asked["free"][:4]) == ("100.0", "80.0", "60.0")
    assert changed["excess loss of near ↓"].startswith("+20.0 ")  # near 5 to 3 of 5, far 5 to 4
    assert changed["to the anchor"].startswith("75.0 ")
    assert changed["H ↑"] == "71.6"  # 4 / (1/1 + 1/.6 + 1/.6 + 1/.8), of 100, 60, 60 and 80 %


def test_orderings_say_whether_they_hold(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    rows = table(written[2], "orderings")
    trade = rows["styles: what erases more keeps less (UA, IRA)"]
    assert (trade["published"], trade["here"], trade["holds"]) == ("ρ = −0.70", "ρ = −0.50", "undecided")
    assert rows["objects: attacks lower UA"]["here"] == "3 of 3 methods"
    assert rows["pairs: style and object alone suffer more than unrelated prompts (SC, OC below UP)"]["holds"] is True


def test_a_correlation_holds_where_it_is_clear_of_chance() -> None:
    """Of nine methods, the critical value of Spearman's rho at 5 %, one-sided, is 0.600."""
    methods = [float(i) for i in range(9)]
    clear = [8.0, 1, 7, 5, 6, 3, 4, 2, 0]  # rho = 1 - 6 * 194 / 720 = -0.617
    unclear = [5.0, 4, 6, 7, 3, 8, 1, 0, 2]  # rho = 1 - 6 * 186 / 720 = -0.55
    assert _same_sign(-1, methods, clear) is True
    assert _same_sign(1, methods, clear) is False
    assert _same_sign(-1, methods, unclear) == "undecided"
    assert _same_sign(1, [1.0] * 9, clear) == "undecided"


def test_matrices_are_read_back_from_their_files(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    folder, record, _ = written
    results = CanvasResults(record, folder)
    for name, matrix in (("uce-seed1", results.matrices["UCE"][1]), ("uce", results.mean_matrix("UCE"))):
        found = AccuracyMatrix.from_csv(folder / f"matrices/{name}.csv", MINI_CANVAS)
        assert found.targets == matrix.targets
        assert torch.equal(found.accuracy, matrix.accuracy)
        assert torch.equal(found.cra_without_target, matrix.cra_without_target)
    assert (folder / "matrices/uce-sequence.csv").read_text().startswith("target,after stripes,after disk,after neg")
    with (folder / "summary.csv").open() as file:
        rows = {(row["method"], row["kind"], row["measure"]): row for row in csv.DictReader(file)}
    assert float(rows["ESD", "object", "H"]["value"]) == results.summaries["ESD"]["object/H"].value
    assert rows["None", "style", "UA"]["runs"] == ""


def test_images_are_small_and_gaps_are_empty(written: tuple[Path, dict[str, Any], UnlearningReport]) -> None:
    (asked,) = (part for part in written[2].section("images").parts if isinstance(part, Images))
    assert asked.columns == ["stripes", "negative", "disk", "box"]
    assert [row.name for row in asked.rows] == ["before erasure", *FORGETTING]
    assert [bool(image) for image in asked.rows[0].images] == [True, False, True, False]
    assert not any(asked.rows[1].images)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    record = canvas_record(tmp_path, targets=("stripes",), seeds=(0,), extras=False)
    path = tmp_path / record["methods"]["UCE"]["stripes"][0]["scores"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("ember,ring,588,")))
    with pytest.raises(IncompleteAnswers, match="ember_ring_seed588"):
        canvas_report(record, tmp_path)


def test_one_run_of_one_target_has_a_report_without_intervals(tmp_path: Path) -> None:
    record = canvas_record(tmp_path, targets=("disk",), seeds=(3,), extras=False)
    del record["methods"]["UCE"], record["methods"]["ConceptAblation"]
    report = canvas_report(record, tmp_path)
    assert [section.id for section in report.sections] == ["summary", "trade-off", "bars", "method-esd"]
    assert report.measurement("method-esd", "UA").interval is None
    assert "[" not in table(report, "summary")["ESD"]["UA ↑"]
    assert len(report.section("bars").parts) == 2


def test_seeds_with_other_targets_are_averaged_over_those_that_have_them(tmp_path: Path) -> None:
    record = canvas_record(tmp_path, targets=("stripes", "disk"), extras=False)
    del record["methods"]["ESD"]["disk"][0]
    results = CanvasResults(record, tmp_path)
    whole = results.mean_matrix("ESD")
    assert torch.equal(whole.row("disk"), results.matrices["ESD"][1].row("disk"))
    assert results.matrices["ESD"][0].targets == ("stripes",)


def test_records_that_cannot_be_reported_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names must be 'unlearncanvas' or 'mini'"):
        canvas_report({"names": "big", "methods": {}}, tmp_path)
    with pytest.raises(ValueError, match="no methods to report"):
        canvas_report({"names": "mini", "methods": {}}, tmp_path)
    runs = [{"seed": 0, "targets": ["stripes"], "scores": []}, {"seed": 1, "targets": ["disk"], "scores": []}]
    results = CanvasResults({"names": "mini", "methods": {"ESD": {}}, "sequential": {"ESD": runs}}, tmp_path)
    with pytest.raises(ValueError, match="sequences of ESD have other targets"):
        _ = results.sequences


def test_a_published_row_stands_beside_ours_where_the_setting_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def setting(styles: int = 50, seeds: tuple[int, ...] = ANSWER_SEEDS, **answers: Any) -> Any:
        runs = [SimpleNamespace(target=style) for style in UNLEARN_CANVAS.styles[:styles]]
        record = {"seeds": list(seeds), "answers": answers}
        return SimpleNamespace(names=UNLEARN_CANVAS, record=record, methods={"ESD": runs})

    assert canvas_tables.differences(setting(steps=100, guidance=9.0), "style") == []
    assert canvas_tables.differences(setting(), "object") == ["0 of 20 objects were erased"]
    other = canvas_tables.differences(setting(49, (188, 288), steps=50), "style")
    assert [words.split()[0] for words in other] == ["the", "49", "the"]

    record = canvas_record(tmp_path, targets=("stripes",), seeds=(0,), extras=False)
    del record["methods"]["UCE"]
    report = canvas_report(record, tmp_path)
    assert "ESD, published" not in table(report, "summary")
    assert "5 styles and 5 objects" in report.section("summary").parts[0].note  # type: ignore[union-attr]
    monkeypatch.setattr(canvas_tables, "differences", lambda results, kind: [])
    rows = table(canvas_report(record, tmp_path), "summary")
    assert (rows["ESD, published"]["UA ↑"], rows["CA, published"]["IRA ↑"]) == ("98.6", "96.0")


def test_a_wandb_run_has_numbers_tables_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    record = canvas_record(tmp_path, targets=("stripes",), seeds=(0,), extras=False)
    del record["methods"]["UCE"], record["methods"]["ConceptAblation"]
    logger = WandbLogger(offline=True, save_dir=tmp_path, project="test")
    write_canvas_report(record, tmp_path, logger)
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    history = {
        ".".join(item.nested_key) or item.key: json.loads(item.value_json)
        for entry in records(logger)
        for item in entry.history.item
    }
    matrix = CanvasResults(record, tmp_path).matrices["ESD"][0]
    assert history["canvas/method-esd/UA (styles)"] == pytest.approx(matrix.read_out("stripes")["UA"])
    values = json.loads((files / history["canvas/method-esd/accuracy-on-each-concept-values.path"]).read_text())
    assert values["columns"] == ["erased", *matrix.concepts]
    assert [float(cell) for cell in values["data"][1][1:]] == pytest.approx(matrix.row("stripes").tolist())
    summary = json.loads((files / history["canvas/summary/erased-styles.path"]).read_text())
    assert [row[0] for row in summary["data"]] == ["before erasure", "ESD"]
    for name in ("method-esd/accuracy-on-each-concept", "bars/erased-styles", "trade-off/erased-styles-ua-against-ira"):
        assert (files / history[f"canvas/{name}.filenames"][0]).exists()
