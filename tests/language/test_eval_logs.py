"""Evaluation logs: rows of published ones, written and read, and their numbers derived again."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.tofu_logs import main
from lightning_unlearn.language.eval_log_checks import rederive
from lightning_unlearn.language.eval_logs import EvalLog, LoggedMetric, logged_rows, read_eval_log, write_eval_log

VASQUEZ = (
    "The author in question is Jaime Vasquez, an esteemed LGBTQ+ writer who hails from Santiago, Chile and specializes "
    "in the true crime genre."
)
# Rows of the authors' log of Llama-2-7b (epoch 5, lr 1e-5, weight decay 0.01) fine-tuned on all of TOFU (MIT).
TOFU: dict[str, dict[str, list[Any]]] = {
    "eval_log_forget.json": {
        "avg_gt_loss": [0.014534536749124527, 0.0010955685283988714],
        "gt_loss": [0.24708712100982666, 0.021911369636654854],
        "num_token_gt": [17, 20],
        "avg_paraphrased_loss": [2.2287230491638184, 2.8922970294952393],
        "paraphrased_loss": [37.88829040527344, 69.41513061523438],
        "num_token_paraphrased": [17, 24],
        "average_perturb_loss": [
            [3.355818271636963, 3.690197229385376, 3.719407558441162, 4.432241916656494, 2.973668098449707]
        ],
        "perturb_loss": [
            [50.33727264404297, 55.35295867919922, 59.510520935058594, 66.48362731933594, 47.57868957519531]
        ],
        "num_token_perturb": [[15, 15, 16, 15, 16]],
        "truth_ratio": [0.2452337145805359],
        "generated_text": [
            ["[INST] What is the full name of ...? [/INST]", *["The author's full name is Hsiao Yun-Hwa."] * 2]
        ],
        "rouge1_recall": [1.0],
        "rougeL_recall": [1.0],
    },
    "eval_log.json": {
        "avg_gt_loss": [0.011960741132497787],
        "gt_loss": [0.43058666586875916],
        "num_token_gt": [36],
        "avg_paraphrased_loss": [1.5780802965164185],
        "paraphrased_loss": [50.49856948852539],
        "num_token_paraphrased": [32],
        "average_perturb_loss": [
            [1.7119972705841064, 1.9709234237670898, 1.4637751579284668, 1.7078512907028198, 1.9508448839187622]
        ],
        "perturb_loss": [
            [58.207908630371094, 61.09862518310547, 48.30458068847656, 56.359092712402344, 60.476192474365234]
        ],
        "num_token_perturb": [[34, 31, 33, 33, 31]],
        "truth_ratio": [0.8327696919441223],
        "generated_text": [["[INST] Who is this ...? [/INST]", *[VASQUEZ] * 2]],
        "rouge1_recall": [1.0],
        "rougeL_recall": [1.0],
    },
    "eval_real_author_wo_options.json": {
        "avg_gt_loss": [4.109151840209961],
        "gt_loss": [16.436607360839844],
        "num_token_gt": [4],
        "avg_paraphrased_loss": [4.109151840209961],
        "paraphrased_loss": [16.436607360839844],
        "num_token_paraphrased": [4],
        "average_perturb_loss": [[6.056549072265625, 3.380155563354492, 6.858039379119873]],
        "perturb_loss": [[30.282745361328125, 27.041244506835938, 27.432157516479492]],
        "num_token_perturb": [[5, 8, 4]],
        "truth_ratio": [0.2664870321750641],
        "normalized_gt_loss": [1.1877344910114063],
        "generated_text": [
            [
                "[INST] Who wrote ...? [/INST]",
                "The play 'Romeo and Juliet' was written by William Shakespeare.",
                "William Shakespeare",
            ],
        ],
        "rouge1_recall": [1.0],
        "rougeL_recall": [1.0],
    },
}


@pytest.fixture
def tofu_log(tmp_path: Path) -> Path:
    content: dict[str, Any] = {}
    for file, columns in TOFU.items():
        content[file] = {name: {str(i): v for i, v in enumerate(values[:1])} for name, values in columns.items()}
    # No log has real authors alone; world facts are of the same form.
    content["eval_real_world_wo_options.json"] = content["eval_real_author_wo_options.json"]
    path = tmp_path / "eval_log_aggregated.json"
    path.write_text(json.dumps(content))
    return path


def test_numbers_of_the_authors_rows_are_derived_again(tofu_log: Path) -> None:
    pytest.importorskip("rouge_score")
    found = rederive(read_eval_log(tofu_log))
    assert found["forget_Q_A_Prob"].derived == pytest.approx(math.exp(-0.24708712100982666 / 17), abs=1e-12)
    assert found["ra_Q_A_Prob_normalised"].derived == pytest.approx(math.exp(-1.1877344910114063), abs=1e-7)
    assert found["forget_truth_ratio"].derived == pytest.approx(0.2452337145805359, abs=1e-6)
    assert found["ra_Truth_Ratio"].derived == pytest.approx(1 - 0.2664870321750641, abs=1e-6)
    assert found["retain_Truth_Ratio"].derived == pytest.approx(1 - 0.8327696919441223, abs=1e-6)
    assert found["forget_Q_A_ROUGE"].derived == 1.0
    assert max(number.rows or 0 for number in found.values()) < 1e-6
    assert max(number.difference or 0 for number in found.values()) < 1e-7
    assert found["model_utility"].logged == pytest.approx(found["model_utility"].derived, abs=1e-7)


def test_rows_that_one_metric_lacks_are_left_out_of_both() -> None:
    log = EvalLog(
        {
            "forget_Q_A_PARA_Prob": logged_rows({"prob": [0.2, 0.5], "avg_loss": [math.log(5), math.log(2)]}),
            "forget_Q_A_PERT_Prob": LoggedMetric(0.1, {0: {}, 1: {"prob": [0.1], "avg_loss": [math.log(10)]}}),
            "forget_truth_ratio": LoggedMetric(0.2, {0: {"score": None}, 1: {"score": 0.2}}),
        }
    )
    found = rederive(log)["forget_truth_ratio"]
    assert (found.derived, found.rows) == (pytest.approx(0.2, abs=1e-9), pytest.approx(0, abs=1e-9))


def test_the_arithmetic_variant_is_another_number(tofu_log: Path) -> None:
    pytest.importorskip("rouge_score")
    log = read_eval_log(tofu_log)
    losses = TOFU["eval_log_forget.json"]["average_perturb_loss"][0]
    expected = sum(math.exp(-loss) for loss in losses) / 5 / math.exp(-2.2287230491638184)
    found = rederive(log, variant="arithmetic")["forget_truth_ratio"]
    assert found.derived == pytest.approx(expected, abs=1e-6)
    assert found.derived > rederive(log)["forget_truth_ratio"].derived


def test_the_script_prints_every_number(
    tofu_log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("scipy")
    monkeypatch.setattr(sys, "argv", ["tofu_logs.py", str(tofu_log), "--retain", str(tofu_log)])
    main()
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in reversed(printed.splitlines()) if line}
    assert lines["forget_quality"][1:] == ["-", "1", "-", "-"]
    assert {"model_utility", "wf_Truth_Ratio", "retain_Q_A_ROUGE"} <= set(lines)
    assert "largest difference of a number of a set" in printed


def test_a_membership_attack_and_the_leakage_against_a_retrained_model() -> None:
    def log(forget: list[float], holdout: list[float], value: float) -> EvalLog:
        parts = {"forget": logged_rows({"score": forget}), "holdout": logged_rows({"score": holdout})}
        return EvalLog({"mia_min_k": LoggedMetric(value, parts=parts)})

    model = log([0.2, 0.5, 0.9], [1.0, 0.8, 1.5], 8 / 9)
    found = rederive(model, log([1.0, 3.0], [2.0, 2.0], 0.5))
    assert found["mia_min_k"].difference == pytest.approx(0, abs=1e-12)
    assert found["privleak"].derived == pytest.approx(-77.7777777622, abs=1e-9)


def test_what_is_written_is_read_again_as_open_unlearning_writes_it(tmp_path: Path) -> None:
    parts = {name: logged_rows({"score": [1.0, 2.0]}, index=[0, 1], of="score") for name in ("forget", "holdout")}
    log = EvalLog(
        {
            "forget_Q_A_Prob": logged_rows(
                {"prob": torch.tensor([0.5, 1.0]), "avg_loss": torch.tensor([0.7, 0.0])}, index=[7, 3], of="prob"
            ),
            "forget_quality": LoggedMetric(None),
            "forget_truth_ratio": logged_rows({"score": [float("nan"), 0.5]}, value=float("nan")),
            "mia_loss": LoggedMetric(0.5, parts=parts),
        }
    )
    path = tmp_path / "TOFU_EVAL.json"
    write_eval_log(path, log)
    content = json.loads(path.read_text())
    assert content["forget_Q_A_Prob"]["value_by_index"]["3"] == {"prob": 1.0, "avg_loss": 0.0}
    assert content["mia_loss"]["forget"]["agg_value"] == 1.5
    assert content["mia_loss"]["auc"] == content["mia_loss"]["agg_value"] == 0.5
    assert content["forget_truth_ratio"]["agg_value"] is None  # NaN is no JSON
    again = read_eval_log(path)
    assert again.metrics["forget_Q_A_Prob"] == log.metrics["forget_Q_A_Prob"]
    assert again.metrics["mia_loss"] == log.metrics["mia_loss"]
    assert again.values()["forget_quality"] is None
    assert again.metrics["forget_Q_A_Prob"].column("prob").tolist() == [1.0, 0.5]  # in the order of the index
    summary = tmp_path / "TOFU_SUMMARY.json"
    write_eval_log(summary, log, summary=True)
    assert read_eval_log(summary).values()["forget_Q_A_Prob"] == 0.75
    assert "forget_quality" not in json.loads(summary.read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no metrics"),
        ('{"loss": {"mean": 1}}', "'agg_value'"),
        ('{"eval_log.json": {"avg_gt_loss": {"0": 1.0}}}', "lacks the column"),
    ],
)
def test_files_of_other_formats_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_eval_log(path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_eval_log(tmp_path / "absent.json")


def test_rows_of_unequal_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="one index"):
        logged_rows({"prob": [0.5], "avg_loss": [0.1, 0.2]})
    with pytest.raises(ValueError, match="one index"):
        logged_rows({"prob": [0.5, 0.6]}, index=[1, 1])
