"""The record of a report: what it holds, what it refuses, and that it is read back as it was written."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from lightning_unlearn.report.model import SCHEMA, Headline, UnlearningReport
from lightning_unlearn.report.schema import report_schema
from lightning_unlearn.report.sections import (
    KINDS,
    Anchors,
    Bars,
    BarSeries,
    Curve,
    ExampleRow,
    Examples,
    Heatmap,
    ImageRow,
    Images,
    Interval,
    Measurement,
    Section,
    Series,
    Table,
)
from tests.report.reports import full_report

VALIDATOR = jsonschema.Draft202012Validator(report_schema())


def test_the_schema_is_a_schema_of_this_version() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())
    assert report_schema()["properties"]["schema"]["const"] == SCHEMA == "lightning-unlearn/report/1"


def test_the_schema_has_the_fields_of_the_dataclasses_and_their_defaults() -> None:
    definitions = report_schema()["$defs"]
    names = {
        "barSeries": BarSeries,
        "exampleRow": ExampleRow,
        "imageRow": ImageRow,
        "series": Series,
        "interval": Interval,
    }
    names |= {"anchors": Anchors, "headline": Headline, "section": Section, **KINDS}
    assert names.keys() == definitions.keys()
    for name, cls in {**names, "report": UnlearningReport}.items():
        schema = definitions.get(name, report_schema())
        kind = {"kind"} if name in KINDS else set()
        needed = {f.name for f in fields(cls) if f.default is f.default_factory}
        assert set(schema["properties"]) == {f.name for f in fields(cls)} | kind, name
        assert set(schema["required"]) - {"schema"} == needed | kind, name
        assert schema["additionalProperties"] is False, name


def test_round_trip_of_every_part(tmp_path: Path) -> None:
    report = full_report()
    kinds = {part["kind"] for section in report.to_dict()["sections"] for part in section["parts"]}
    assert kinds == set(KINDS)
    text = json.dumps(report.to_dict(), allow_nan=False)
    VALIDATOR.validate(json.loads(text))
    assert UnlearningReport.from_dict(json.loads(text)) == report
    (tmp_path / "report.json").write_text(text)
    assert UnlearningReport.read(tmp_path) == UnlearningReport.read(tmp_path / "report.json") == report


def test_keys_with_a_default_may_be_missing() -> None:
    record = {"schema": SCHEMA, "title": "", "sections": [{"id": "a", "title": "A"}]}
    VALIDATOR.validate(record)
    assert UnlearningReport.from_dict(record).sections == [Section("a", "A")]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], "lightning-unlearn/report/2", "schema is 'lightning-unlearn/report/2'"),
        (["colour"], "red", r"report is not of this schema: missing keys \[\], unknown keys \['colour'\]"),
        (["sections"], {}, "report.sections must be a list"),
        (["sections", 1, "parts", 0, "kind"], "poem", r"report.sections\[1\].parts\[0\]: .* but got 'poem'"),
        (["sections", 1, "parts", 0, "value"], "0.1", "value must be a number, but got '0.1'"),
        (["sections", 1, "parts", 0, "value"], True, "value must be a number, but got True"),
        (["sections", 1, "parts", 0, "outcome"], "good", "outcome must be 'pass', 'fail', 'info' or 'not run'"),
        (["sections", 1, "parts", 0, "better"], "up", "better must be"),
        (["sections", 1, "parts", 0, "n"], -1, "n must be a number of rows"),
        (["sections", 1, "parts", 2, "reason"], "", "needs a reason"),
        (["sections", 1, "parts", 0, "interval", "low"], 0.5, "low <= high"),
        (["sections", 2, "parts", 0, "series", 0, "role"], "victim", "role must be"),
        (["sections", 0, "id"], "Request!", "lower-case letters"),
        (["headline", "tone"], "green", "tone must be"),
        (["title"], 3, "report.title must be a string"),
        (["sections", 3, "parts", 0, "rows", 0, "outputs"], "abc", r"rows\[0\].outputs must be a list"),
    ],
)
def test_a_wrong_value_is_named_by_the_reader_and_refused_by_the_schema(
    path: list[Any], value: Any, message: str
) -> None:
    record = json.loads(json.dumps(full_report().to_dict()))
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        UnlearningReport.from_dict(record)
    if "low <= high" not in message:  # a schema can't compare two values
        assert not VALIDATOR.is_valid(record)


def test_a_missing_key_is_named() -> None:
    record = full_report().to_dict()
    del record["sections"][1]["parts"][0]["name"]
    with pytest.raises(
        ValueError, match=re.escape("report.sections[1].parts[0] is not of this schema: missing keys ['na")
    ):
        UnlearningReport.from_dict(record)


def test_files_that_are_no_report_are_named(tmp_path: Path) -> None:
    for name, text, message in [
        ("cut.json", '{"schema": "lig', "cut.json is not a JSON file, or a part of one"),
        ("nan.json", '{"schema": NaN}', "nan.json is not a JSON file.*NaN is not JSON"),
        ("other.json", '{"before": 1}', "other.json: Not a report that this version reads: its schema is None"),
        ("list.json", "[]", "list.json: Not a report"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            UnlearningReport.read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        UnlearningReport.read(tmp_path / "missing")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float32("inf")])
def test_numbers_that_are_not_finite(value: Any) -> None:
    part = Measurement("forget NLL", value, anchors=Anchors(original=value), outcome="fail")
    assert (part.value, part.reason, part.anchors.original) == (None, "not finite", None)
    curve = Curve("c", "x", "y", [Series("a", [0, 1], [value, 0.5])])
    table = Table("t", ["a"], [[value]])
    report = UnlearningReport(
        title="", sections=[Section("a", "", [part, curve, table])], provenance={"clip": math.nan}
    )
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    VALIDATOR.validate(record)
    assert UnlearningReport.from_dict(record) == report
    with pytest.raises(ValueError, match="it can't pass"):
        replace(part, outcome="pass")


def test_tensors_and_arrays_become_numbers() -> None:
    part = Measurement("a", torch.tensor(0.25), anchors=Anchors(np.float64(0.5)))  # type: ignore[arg-type]
    assert json.dumps(part.value) == "0.25"
    assert json.dumps(part.anchors.original) == "0.5"
    assert json.dumps(Table("", ["a"], [[np.float32(0.5)]]).rows) == "[[0.5]]"


def heatmap(**other: Any) -> Heatmap:
    shown: dict[str, Any] = {"rows": ["a", "b"], "columns": ["x", "y"], "values": [[1, 2], [3, None]]}
    return Heatmap("H", "row", "column", **shown | other)


def test_colours_of_a_heat_map_go_from_its_lowest_to_its_highest_value() -> None:
    assert [heatmap().tone(value) for value in (1, 2, 3, None)] == [0, 0.5, 1, None]
    assert [heatmap(unit="share").tone(value) for value in (0, 0.25, 1)] == [0, 0.25, 1]
    assert [heatmap(scale=[-1, 1]).tone(value) for value in (-2, 0, 5)] == [0, 0.5, 1]
    assert heatmap(values=[[2, 2], [2, 2]]).tone(2) == 0


def test_what_does_not_fit_is_refused() -> None:
    for build, message in [
        (lambda: Table("T", ["a", "b"], [[1]]), r"Row 0 of 'T' has 1 cells, but the table has the 2 columns"),
        (lambda: Table("T", ["a"], [], secret=["b"]), r"no columns \['b'\] to hide"),
        (lambda: Series("s", [0, 1], [1]), "2 places x, but 1 of y"),
        (lambda: Series("s", [0], [1], low=[0]), "both bounds"),
        (lambda: Curve("c", "", "", []), "no series"),
        (lambda: Curve("c", "", "", [Series("s", [0], [1])] * 2), r"\['s'\] more than once"),
        (lambda: BarSeries("s", [0, 1], [0]), "2 values, but 1 of low"),
        (lambda: BarSeries("s", [0], [0]), "both bounds"),
        (lambda: Bars("B", [], "", [BarSeries("s", [])]), "a name and a series"),
        (lambda: Bars("B", ["a", "a"], "", [BarSeries("s", [0, 1])]), r"\['a'\] more than once"),
        (lambda: Bars("B", ["a", "b"], "", [BarSeries("s", [1])]), "1 values, but there are 2 names"),
        (lambda: heatmap(values=[[0.5]]), "2 rows of 2 values.*has 1 rows"),
        (lambda: heatmap(columns=["x", "x"]), r"The columns of 'H' has \['x'\] more than once"),
        (lambda: heatmap(groups=["styles"]), "2 columns, but 1 groups"),
        (lambda: heatmap(marked=[(0, 2)], mark_means="m"), r"no cell \[0, 2\]"),
        (lambda: heatmap(marked=[(0, 1)]), "mark_means="),
        (lambda: heatmap(scale=[1, 0]), "two ascending numbers"),
        (lambda: Examples("E", ["before"], [ExampleRow("a", "", "", ["x", "y"])]), "2 outputs, but the columns"),
        (lambda: Examples("E", ["before"], [ExampleRow("a", "", "", ["x"], [True])]), "hit_means"),
        (lambda: ExampleRow("a", "", "", ["x"], [True, False]), "1 outputs, but 2 hits"),
        (lambda: ImageRow("a", ["https://example.org/a.png"]), "data URIs"),
        (lambda: Images("I", ["a", "b"], [ImageRow("r", [""])]), "1 images, but the columns"),
        (lambda: Section("a", "", [Measurement("m", 1.0), Measurement("m", 2.0)]), r"\['m'\] more than once"),
        (lambda: UnlearningReport(title="", sections=[Section("a", ""), Section("a", "")]), "one id"),
        (lambda: Interval(None, None), "lower or an upper bound"),
        (lambda: Interval(0, 1, level=95), "level"),
        (lambda: Measurement("", 1.0), "needs a name"),
        (lambda: Measurement("m", 1.0, outcome="not run", reason="r"), "can't be 'not run'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()


def test_measurements_are_found_by_name_and_variant() -> None:
    report = full_report()
    assert report.measurement("effectiveness", "extraction strength").value == 0.071
    assert [section for section, _ in report.measurements()] == ["effectiveness"] * 3
    with pytest.raises(KeyError, match="It has \\['request', 'effectiveness'"):
        report.section("privacy")
    with pytest.raises(KeyError, match=r"0 measurements 'extraction strength'.*\(strict\)"):
        report.measurement("effectiveness", "extraction strength", "floored")


def test_the_time_and_the_versions_are_those_of_the_process() -> None:
    report = full_report()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report.created)
    assert {"lightning-unlearn", "lightning", "torch", "python", "platform"} == report.environment.keys()
