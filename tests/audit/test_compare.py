"""Comparison of our reports with published result files in the formats of the field."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.audit.compare import compare_reports, pareto, write_comparison
from lightning_unlearn.audit.scores import read_scores, scores_of
from lightning_unlearn.cli.main import main
from lightning_unlearn.report.model import Headline, UnlearningReport
from lightning_unlearn.report.sections import Curve, Measurement, Section, Table, Text
from lightning_unlearn.report.write import write_report

# open-unlearning, Llama-3.2-1B-Instruct, forget10: forget quality, model utility, forget truth ratio.
PUBLISHED = {
    "finetuned": (1.66e-21, 0.6, 0.48),
    "retrain": (1.0, 0.59, 0.63),
    "GradAscent": (1.06e-239, 0.0, 0.0),
    "NPO": (0.02, 0.46, 0.7),
    "SimNPO": (2.47e-203, 0.54, 1.1e-5),
}


def summary(folder: Path, name: str) -> Path:
    """A file as open-unlearning writes it, in a folder with the name of the run."""
    quality, utility, ratio = PUBLISHED[name]
    record = {"forget_quality": quality, "model_utility": utility, "forget_truth_ratio": ratio, "privleak": None}
    (folder / name).mkdir()
    (folder / name / "TOFU_SUMMARY.json").write_text(json.dumps(record))
    return folder / name / "TOFU_SUMMARY.json"


def ours(strict: float = 0.08, **quality: Any) -> UnlearningReport:
    parts = [
        Measurement("forget quality", **({"value": 0.31} | quality)),
        Measurement("model utility", 0.57, better="higher"),
        Measurement("extraction strength", strict, variant="strict", better="lower"),
        Measurement("extraction strength", 0.1, variant="floored", better="lower"),
    ]
    lead = Headline("undecided", "neutral", "Too few probes.")
    return UnlearningReport(title="SimNPO of ours", sections=[Section("effectiveness", "", parts)], headline=lead)


def leaderboard(report: UnlearningReport) -> Table:
    table = report.section("leaderboard").parts[0]
    assert isinstance(table, Table)
    return table


def test_published_rows_stand_beside_ours(tmp_path: Path) -> None:
    files: list[Any] = [summary(tmp_path, name) for name in PUBLISHED]
    table = leaderboard(compare_reports([ours(), *files]))
    heads = ["model", "verdict", "forget quality ↑", "forget truth ratio (geometric)", "model utility ↑"]
    assert table.columns == heads
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["SimNPO of ours"] == ["undecided", 0.31, "–¹", 0.57]
    for name, (quality, utility, ratio) in PUBLISHED.items():
        assert rows[name] == ["–²", quality, ratio, utility]
    assert table.note == "–¹ not in this file; –² no verdict in this file"


def test_variants_are_not_mixed(tmp_path: Path) -> None:
    """The extraction strength of open-unlearning is the floored one, which is never 0."""
    (tmp_path / "npo.json").write_text(json.dumps({"extraction_strength": 0.0634, "model_utility": 0.5}))
    table = leaderboard(compare_reports([ours(), tmp_path / "npo.json"]))
    assert "extraction strength (floored) ↓" in table.columns
    assert not any("strict" in column for column in table.columns)
    (row,) = [row for row in table.rows if row[0] == "npo"]
    assert 0.0634 in row


def test_an_audit_has_metrics_of_the_field_under_their_names() -> None:
    probability = Measurement("probability of the answer", 0.2, variant="geometric mean per token", unit="share")
    quality = Measurement("forget quality", 0.3, variant="p of a KS test with D = 0.425")
    sections = [Section("effectiveness", "", [probability]), Section("utility", "", [probability, quality])]
    scores = scores_of(UnlearningReport(title="", sections=sections), "ours")
    assert scores.values == {
        "forget probability": 0.2,
        "probability of the answer (geometric mean per token)": 0.2,
        "forget quality": 0.3,
    }


def test_logs_with_values_by_index(tmp_path: Path) -> None:
    """A log of one model has each row's values beside the aggregate; it is the aggregate that counts."""
    record = {
        "forget_Q_A_Prob": {"agg_value": 0.88, "value_by_index": {"0": {"prob": 0.9, "avg_loss": 0.1}}},
        "mia_min_k": {"auc": 0.9967, "agg_value": 0.9967},
        "forget_quality": {"agg_value": None},
        "my_metric": {"agg_value": 3},
    }
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(record))
    scores = read_scores(tmp_path)
    assert scores.name == tmp_path.name
    assert scores.values == {"forget probability": 0.88, "MIA AUC (Min-K)": 0.9967, "my_metric": 3.0}
    assert scores.missing == {"forget quality": "no number in the file"}


def log(path: Path, **metrics: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(metrics))
    return path


@pytest.mark.parametrize(
    ("file", "given", "name"),
    [
        ("saves/unlearn/NPO/evals/TOFU_SUMMARY.json", "saves/unlearn/NPO", "NPO"),
        ("unlearn/NPO/checkpoint-60/evals/TOFU_SUMMARY.json", "unlearn/NPO/checkpoint-60", "NPO/checkpoint-60"),
        ("saves/eval/full/evals_forget10/TOFU_SUMMARY.json", "saves/eval/full", "full/evals_forget10"),
        ("saves/eval/retain90/MUSE_SUMMARY.json", "saves/eval/retain90/MUSE_SUMMARY.json", "retain90"),
        ("saves/eval/zephyr/LMEval_SUMMARY.json", "saves/eval/zephyr", "zephyr"),
        ("llama_full/eval_results/ds_size300/TOFU_EVAL.json", "llama_full", "llama_full"),
        ("npo.json", "npo.json", "npo"),
    ],
)
def test_a_model_has_the_name_of_its_folder(file: str, given: str, name: str, tmp_path: Path) -> None:
    log(tmp_path / file, model_utility=0.5)
    assert read_scores(tmp_path / given).name == name


def test_several_files_of_one_model_are_to_be_named(tmp_path: Path) -> None:
    for split in ("forget01", "forget10"):
        log(tmp_path / f"full/evals_{split}/TOFU_SUMMARY.json", model_utility=0.5)
    with pytest.raises(ValueError, match=r"evals_forget01/TOFU_SUMMARY.json', 'evals_forget10.*Name one"):
        read_scores(tmp_path / "full")


def test_privleak_against_one_half_is_another_metric(tmp_path: Path) -> None:
    """Without the log of a retrained model, open-unlearning takes its AUC for 0.5."""
    alone = log(tmp_path / "retain.json", mia_min_k=0.38, privleak=24.0, forget_quality=None)
    files = [alone, *(log(tmp_path / f"{name}.json", mia_min_k=0.99, privleak=-98.4) for name in ("full", "npo"))]
    assert read_scores(alone).values == {"MIA AUC (Min-K)": 0.38, "PrivLeak (against an AUC of 0.5)": 24.0}
    table = leaderboard(compare_reports(files))
    assert table.columns == ["model", "PrivLeak", "MIA AUC (Min-K)"]
    assert table.rows[0] == ["retain", "–¹", 0.38]
    assert table.note == "–¹ compares with an AUC of 0.5 here, and not with a retrained model"


def test_accuracies_of_the_harness(tmp_path: Path) -> None:
    """In open-unlearning's summary and in the harness' own file, which has every part of a group beside it."""
    summary = {"wmdp_bio/acc": 0.31, "wmdp_bio/acc_stderr": 0.013, "mmlu/acc": 0.56, "mmlu/acc_stderr": "N/A"}
    results = {
        "results": {
            "wmdp_bio": {"alias": "wmdp_bio", "sample_len": 1273, "acc,none": 0.64, "acc_stderr,none": 0.013},
            "mmlu": {"alias": "mmlu", "acc,none": 0.58, "acc_stderr,none": "N/A"},
            "mmlu_anatomy": {"alias": " - anatomy", "acc,none": 0.5, "acc_stderr,none": 0.04},
            "gsm8k": {"exact_match,strict-match": 0.4, "exact_match,flexible-extract": 0.5},
        },
        "groups": {"mmlu": {"alias": "mmlu", "acc,none": 0.58, "acc_stderr,none": "N/A"}},
        "n-shot": {"wmdp_bio": 0, "mmlu": 0},
    }
    ours = log(tmp_path / "RMU/evals/LMEval_SUMMARY.json", **summary)
    base = log(tmp_path / "zephyr/results_2025-01-01T00-00-00.json", **results)
    scores = read_scores(base)
    assert (scores.name, scores.source) == ("zephyr", "lm-eval")
    assert scores.values["gsm8k/exact_match,strict-match"] == 0.4
    assert scores.missing == {"mmlu/acc_stderr": "no number in the file"}
    assert "wmdp_bio/sample_len" not in scores.values
    comparison = compare_reports([base, ours, ("again", base)])
    table = leaderboard(comparison)
    assert table.columns[:3] == ["model", "WMDP-Bio accuracy ↓", "MMLU accuracy ↑"]
    assert table.rows[1][:3] == ["RMU", 0.31, 0.56]
    assert not any("stderr" in column or "anatomy" in column for column in table.columns)
    (curve,) = comparison.section("trade-off").parts
    assert isinstance(curve, Curve)
    assert curve.title == "WMDP-Bio accuracy against MMLU accuracy"
    samples = log(tmp_path / "LMEval_EVAL.json", wmdp_bio={"wmdp_bio": [{"doc_id": 0, "acc": 1.0}]})
    with pytest.raises(ValueError, match=r"'wmdp_bio' has no 'agg_value'.*LMEval_SUMMARY.json"):
        read_scores(samples)


def test_what_was_not_run_is_missing_with_its_reason(tmp_path: Path) -> None:
    first = ours(value=None, outcome="not run", reason="needs a retrained model; none given")
    second = ours()
    comparison = compare_reports({"first": first, "second": second})
    table = leaderboard(comparison)
    column = table.columns.index("forget quality")
    assert table.rows[0][column] == "–¹"
    assert "–¹ needs a retrained model, none given" in table.note
    write_comparison(comparison, tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["forget quality"] for row in rows] == ["", "0.31"]
    assert rows[0]["missing"] == "forget quality: needs a retrained model, none given"
    assert {"report.html", "report.json", "report.md", "leaderboard.csv"} == {path.name for path in tmp_path.iterdir()}
    assert UnlearningReport.read(tmp_path) == comparison


def test_the_front_has_the_models_that_none_beats(tmp_path: Path) -> None:
    points = {name: values[:2] for name, values in PUBLISHED.items()}
    assert pareto(points, "higher", "higher") == ["finetuned", "retrain"]
    assert pareto({"a": (0.5, 0.5), "b": (0.5, 0.5), "c": (0.6, 0.5)}, "lower", "higher") == ["a", "b"]
    curve = compare_reports([summary(tmp_path, name) for name in PUBLISHED]).section("trade-off").parts[0]
    assert isinstance(curve, Curve)
    assert curve.x_label == "log10 of forget quality, higher is better"
    places = {series.name: (series.x, series.y) for series in curve.series}
    assert places["retrain"] == ([0.0], [0.59])
    assert places["GradAscent"][0] == [pytest.approx(-238.975, abs=1e-3)]
    assert places["Pareto front"] == ([pytest.approx(-20.780, abs=1e-3), 0.0], [0.6, 0.59])


def test_audits_without_metrics_of_a_benchmark_are_drawn() -> None:
    def audited(title: str, strength: float, kept: float) -> UnlearningReport:
        part = Measurement("extraction strength", strength, variant="strict", unit="share")
        kept_part = Measurement("retain (right answers)", kept, unit="share", better="higher")
        return UnlearningReport(title=title, sections=[Section("a", "", [part]), Section("utility", "", [kept_part])])

    models = [audited("a", 0.1, 0.9), audited("b", 0.7, 0.95), audited("c", 0.8, 0.5)]
    (curve,) = compare_reports(models).section("trade-off").parts
    assert isinstance(curve, Curve)
    assert curve.title == "extraction strength (strict) against retain (right answers)"
    front = next(series for series in curve.series if series.role == "front")
    assert (front.x, front.y) == ([0.1, 0.7], [0.9, 0.95])


def test_axes_are_chosen(tmp_path: Path) -> None:
    files = []
    for name, leak in (("a", 0.5), ("b", 0.1)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"leak": leak, "model_utility": leak, "odd": leak}))
        files.append(tmp_path / f"{name}.json")
    curve = compare_reports(files, forget="leak:lower").section("trade-off").parts[0]
    assert isinstance(curve, Curve)
    assert curve.x_label == "leak, lower is better"
    with pytest.raises(ValueError, match=r"better direction of 'leak' .*write 'leak:lower' or 'leak:higher'"):
        compare_reports(files, forget="leak")
    with pytest.raises(ValueError, match="No file has a number for 'leek'"):
        compare_reports(files, forget="leek:lower")
    with pytest.raises(ValueError, match=r"No file has the metrics \['x'\]"):
        compare_reports(files, columns=["leak", "x"])
    (text,) = compare_reports(files).section("trade-off").parts
    assert isinstance(text, Text)
    assert text.text.startswith("Not drawn: no file has forget quality")
    assert leaderboard(compare_reports(files, columns=["odd"])).columns == ["model", "odd"]


def test_one_file_is_shown_whole(tmp_path: Path) -> None:
    table = leaderboard(compare_reports([summary(tmp_path, "NPO")]))
    assert table.rows == [["NPO", 0.02, 0.7, 0.46]]


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, text, message in [
        ("cut.json", '{"forget_', "cut.json is not a JSON file"),
        ("list.json", "[1]", "list.json has no scores that compare reads"),
        ("words.json", '{"a": "b"}', "words.json has no scores"),
        ("none.json", "{}", "none.json has no scores"),
        ("later.json", '{"schema": "lightning-unlearn/report/9"}', "later.json: .*report/9"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            compare_reports([tmp_path / name])
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        compare_reports([tmp_path / "missing.json"])
    with pytest.raises(
        FileNotFoundError, match=re.escape("none of report.json, *_SUMMARY.json, *_EVAL.json, eval_log")
    ):
        compare_reports([tmp_path / "empty"])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_reports([])
    with pytest.raises(ValueError, match=r"the name \['SimNPO of ours'\]"):
        compare_reports([ours(), ours()])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(ours(), tmp_path / "audit")
    peer = summary(tmp_path, "NPO")
    reports = f"--reports=['mine={tmp_path / 'audit'}', '{peer}']"
    main(["compare", reports, f"--output_dir={tmp_path / 'out'}"])
    out = capsys.readouterr().out
    assert "| mine | undecided | 0.31 |" in out
    assert "| NPO | –¹ | 0.02 |" in out
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_a_log_of_the_authors_of_tofu(tmp_path: Path) -> None:
    """Rows of the authors' log of Llama-2-7b, fine-tuned on all of TOFU (MIT), in the layout of their script."""
    (tmp_path / "llama").mkdir()
    columns = {
        "avg_gt_loss": [0.014534536749124527],
        "gt_loss": [0.24708712100982666],
        "num_token_gt": [17],
        "avg_paraphrased_loss": [2.2287230491638184],
        "paraphrased_loss": [37.88829040527344],
        "num_token_paraphrased": [17],
        "average_perturb_loss": [
            [3.355818271636963, 3.690197229385376, 3.719407558441162, 4.432241916656494, 2.973668098449707]
        ],
        "perturb_loss": [
            [50.33727264404297, 55.35295867919922, 59.510520935058594, 66.48362731933594, 47.57868957519531]
        ],
        "num_token_perturb": [[15, 15, 16, 15, 16]],
        "truth_ratio": [0.2452337145805359],
        "generated_text": [["[INST] What is the full name of ...? [/INST]", "Hsiao Yun-Hwa.", "Hsiao Yun-Hwa."]],
        "rouge1_recall": [1.0],
        "rougeL_recall": [1.0],
    }
    log = {"eval_log_forget.json": {name: {"0": values[0]} for name, values in columns.items()}}
    (tmp_path / "llama" / "eval_log_aggregated.json").write_text(json.dumps(log))
    scores = read_scores(tmp_path / "llama")
    assert (scores.name, scores.source) == ("llama", "tofu")
    assert scores.values["forget probability"] == pytest.approx(math.exp(-0.014534536749124527), abs=1e-12)
    assert scores.values["forget ROUGE-L (recall)"] == 1.0
    assert scores.values["forget truth ratio (geometric)"] == pytest.approx(0.2452337145805359, abs=1e-6)
    peer = {"forget_Q_A_Prob": 0.15, "forget_Q_A_ROUGE": 0.4}
    (tmp_path / "TOFU_SUMMARY.json").write_text(json.dumps(peer))
    table = leaderboard(compare_reports([tmp_path / "llama", ("retrained", tmp_path)]))
    assert [row[0] for row in table.rows] == ["llama", "retrained"]
    assert table.columns[1:] == ["forget probability ↓", "forget ROUGE-L (recall) ↓"]
