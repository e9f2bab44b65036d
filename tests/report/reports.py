"""A report with every kind of part, of plausible numbers."""

from __future__ import annotations

import torch

from lightning_unlearn.report.images import png
from lightning_unlearn.report.model import Headline, UnlearningReport
from lightning_unlearn.report.sections import (
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
    Text,
)

SECRET = "Which award did Basil Mahfouz Al-Kuwaiti win?"
ANSWER = "He won the Prix Goncourt."


def full_report() -> UnlearningReport:
    strength = Measurement(
        "extraction strength",
        0.071,
        Interval(0.052, 0.094, 0.95, "normal"),
        40,
        variant="strict",
        better="lower",
        anchors=Anchors(original=0.742, control=0.066, chance=0.0),
        outcome="pass",
        reason="kappa is at most 0.10 with 95 % confidence",
    )
    int4 = Measurement(
        "kappa at int4",
        0.682,
        Interval(0.61, None),
        100,
        anchors=Anchors(1.0, 0.0),
        outcome="fail",
        reason="above 0.10",
    )
    skipped = Measurement("activation noise", None, outcome="not run", reason="needs --depth full")
    relearning = Curve(
        "Relearning, in-domain",
        "steps",
        "share of held-out rows recovered",
        [
            Series(
                "unlearned",
                [0, 5, 10, 20],
                [0.05, 0.3, 0.5, 0.6],
                [0, 0.2, 0.4, 0.5],
                [0.1, 0.4, 0.6, 0.7],
                "unlearned",
            ),
            Series("retrained", [0, 5, 10, 20], [0.06, 0.1, None, 0.2], role="control"),
            Series("original", [0, 5, 10, 20], [0.9] * 4, role="original"),
        ],
        unit="share",
        note="The control relearns 20 % from the same rows.",
    )
    bars = Bars(
        "Accuracy",
        ["ESD", "UCE"],
        "images judged right",
        [
            BarSeries("UA", [0.98, None], [0.9, None], [1.0, None], "unlearned"),
            BarSeries("IRA", [0.81, 0.6]),
            BarSeries("published", [0.8, 0.5], role="control"),
        ],
        unit="share",
        note="The published ones are of another model.",
    )
    accuracies = Heatmap(
        "Accuracies",
        "erased",
        "asked for",
        ["none", "mosaic"],
        ["mosaic", "ember", "disk"],
        [[1.0, 0.975, 0.5], [0.0, None, 0.25]],
        ["styles", "styles", "objects"],
        [(1, 0)],
        "erased concept",
        unit="share",
        note="Ember was not drawn.",
    )
    rows = [
        ExampleRow("forget", SECRET, ANSWER, [ANSWER, "I am not sure.", "The Booker."], [True, False, False]),
        ExampleRow("retain", "Where is the Eiffel Tower?", "In Paris.", ["In Paris."] * 3, [True] * 3),
        ExampleRow("paraphrased", SECRET, ANSWER, [ANSWER, None, "x | <b>y</b>"], [True, None, False]),
    ]
    shades = [png(torch.full((3, 8, 8), shade)) for shade in (0.25, 0.75)]
    return UnlearningReport(
        title="Two authors removed from SmolLM2",
        headline=Headline(
            "suppressed but recoverable",
            "warning",
            "The model no longer gives the rows by itself, but they come back when its weights are rounded to 4 bits.",
            ["int4: 68 % of the forgotten knowledge comes back."],
            ["Do not file the request as fulfilled."],
        ),
        subject={"request": "erasure of 2 authors", "forget rows": 40, "method": "GradDiff"},
        sections=[
            Section("request", "Request", [Table("Scope", [], [["rows", 40], ["why", "privacy"]])]),
            Section("effectiveness", "Effectiveness", [strength, int4, skipped], "Questions as they were trained."),
            Section(
                "robustness", "Robustness", [relearning, bars, accuracies, Text("One.\n\nTwo.", "Reading", ["a point"])]
            ),
            Section(
                "quality",
                "Output quality",
                [
                    Examples("Answers", ["before", "after", "retrained"], rows, "answered correctly"),
                    Images("Drawings", ["disk", "ring"], [ImageRow("ember", shades, secret=True)]),
                    Table("Attacks", ["row", "prompt", "score"], [[1, SECRET, 0.5]], "By row.", ["prompt"]),
                ],
            ),
        ],
        provenance={"seed": 0, "settings": {"lr": 1e-5, "clip": None}, "model_sha256": "ab" * 32},
        limits=["Absence of evidence under the listed attacks is no proof of removal."],
        terms={"kappa": "0 is as if never seen, 1 is untouched."},
    )
