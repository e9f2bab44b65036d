"""Several processes train, measure and draw as one process does with the same global batch.

All is in one file, since one launch runs its cases: a process of its own for each would spend its time on imports.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lightning_unlearn
from lightning_unlearn import LitCausalLM, UnlearnCallback, WeightMask, load_mask
from tests.distributed.cases import CASES
from tests.distributed.classifier_cases import CLASSIFIERS, Faster
from tests.distributed.image_cases import ERASERS
from tests.distributed.language_cases import CURVATURE, EDIT, JUDGES, LANGUAGE, MASKED, MASKS, PENALTIES, SMOOTHED
from tests.distributed.launch import Runs, chosen, launch, load, with_layouts
from tests.distributed.layouts import Training
from tests.distributed.reconstruction_cases import RECONSTRUCTION
from tests.helpers import bits, same

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3000)]

USERS = ["NPO-users", "KLMinimization-users"]
TRAININGS = [
    *LANGUAGE,
    *MASKED,
    *CURVATURE,
    *PENALTIES,
    *SMOOTHED,
    "StopWhenForgotten",
    "DialogueQualityCallback",
    "InfluenceUnlearning",
    *CLASSIFIERS,
    *USERS,
    *ERASERS,
    *RECONSTRUCTION,
    *JUDGES,
]
RESUMED = [
    *LANGUAGE,
    *MASKED,
    *CURVATURE,
    *PENALTIES,
    *SMOOTHED,
    "StopWhenForgotten",
    "DialogueQualityCallback",
    *USERS,
    *RECONSTRUCTION,
    *JUDGES,
]
# Processes read and exchange rows and shards in as many ways as objectives read the model: each way is among the quick
# tests, and further losses of what is read in one of these ways are slow tests.
SLOW = {
    (case, layout)
    for layout in ("ddp", "fsdp2")
    for case in (
        *("AltPO", "CEU", "GradDiff", "GradDiff-ramp", "GradDiff-refusal", "GradientAscent", "IdkDPO", "IdkNLL"),
        *("IdkDPO-snapshot", "KTO-snapshot", "NPO-kl", "NPO-snapshot", "SatImp", "UNDIAL-retain", "WGA"),
        *("ESD-newer", "ESD-ldm", "ESD-text-encoder", "RECE", "AdvUnlearn-unet", "SPM"),
        *("ConceptAblation", "ForgetMeNot", "DiffusionSalUn", "Scissorhands"),
    )
}


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tiny_lm: Path, tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    models = tmp_path_factory.mktemp("models")
    (models / "lm").symlink_to(tiny_lm)
    (models / "pipeline").symlink_to(tiny_sd)
    noise = torch.Generator().manual_seed(0)
    state = LitCausalLM(str(tiny_lm)).state_dict()
    state = {name: value + 0.1 * torch.randn(value.shape, generator=noise) for name, value in state.items()}
    torch.save({"state_dict": state}, models / "reinforced.ckpt")  # another model of the same shape
    torch.manual_seed(0)
    torch.save({name: -value for name, value in Faster().state_dict().items()}, models / "retrained.pt")
    return Runs(chosen(request), models, tmp_path_factory.mktemp("results"))


@with_layouts(TRAININGS, slow=SLOW)
def test_both_processes_have_the_weights_of_one(runs: Runs, case: str, layout: str) -> None:
    training = CASES[case]
    assert isinstance(training, Training)
    for found in runs.each(case, layout):
        torch.testing.assert_close(found["weights"], runs.one(case)["weights"], atol=training.atol, rtol=0)


@with_layouts(RESUMED, "one", slow=SLOW)
def test_a_resumed_run_ends_in_the_same_bits(runs: Runs, case: str, layout: str) -> None:
    for found in runs.each(case, layout):
        assert same(found["resumed"]["weights"], found["weights"])


@pytest.mark.parametrize("alone", TRAININGS)
def test_every_run_moves_the_weights(runs: Runs, alone: str) -> None:
    training, end = CASES[alone], runs.one(alone)["weights"]
    assert isinstance(training, Training)
    moved = max((end[name] - value).abs().max() for name, value in training.start(runs.models).items())
    assert moved > (1e-3 if alone in (*CLASSIFIERS, *USERS, *ERASERS) else 1e-4)


@with_layouts(LANGUAGE, slow=SLOW)
def test_monitors_of_both_processes_measure_what_one_measures(runs: Runs, case: str, layout: str) -> None:
    expected = runs.one(case)["history"]
    assert len(expected) == 3
    for found in runs.each(case, layout):
        for metrics, wanted in zip(found["history"], expected, strict=True):
            assert metrics == pytest.approx(wanted, abs=1e-3)


@with_layouts(["StopWhenForgotten"], "one")
def test_every_process_ends_with_the_same_step(runs: Runs, case: str, layout: str) -> None:
    expected = runs.one(case)
    assert 1 < expected["outcome"].step < expected["outcome"].steps
    for found in runs.each(case, layout):
        assert found["outcome"].step == found["resumed"]["outcome"].step == expected["outcome"].step
        assert found["resumed"]["curve"] == found["curve"]
        for point, wanted in zip(found["curve"], expected["curve"], strict=True):
            assert point == pytest.approx(wanted, rel=1e-3)


@with_layouts(["DialogueQualityCallback"], "one")
def test_conversations_of_shared_seeds_are_rated_as_one_process_rates_them(runs: Runs, case: str, layout: str) -> None:
    expected = runs.one(case)
    assert len(expected["history"]) == 3
    assert {"retain", "neutral", "forget", "drop", "auc_swapped", "auc_refusals"} <= expected["history"][0].keys()
    assert expected["said"][0] != expected["said"][-1]
    for found in runs.each(case, layout):
        assert found["said"] == expected["said"]
        assert len(found["history"]) == 3
        for metrics, wanted in zip(found["history"], expected["history"], strict=True):
            assert metrics == pytest.approx(wanted, abs=1e-4)
        assert found["resumed"] == {name: found[name] for name in ("history", "said")} | {
            "weights": found["resumed"]["weights"]
        }


@pytest.mark.parametrize("case", ["SimNPO", "NPO-LoRA"])
def test_a_sharded_model_exports_the_weights_of_one_process(runs: Runs, case: str) -> None:
    runs.one(case)
    one, sharded = (load_file(runs.results / f"{n}-{case}.whole" / "model.safetensors") for n in ("one", "fsdp2"))
    torch.testing.assert_close(sharded, one, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "ddp_spawn"])
@pytest.mark.parametrize("case", ["NPO"])
def test_lightnings_own_launchers_train_the_same_weights(runs: Runs, case: str, layout: str, tmp_path: Path) -> None:
    if layout == "ddp":
        launch(runs.models, tmp_path, [f"ddp:{case}"], processes=1)
        (found,) = load(tmp_path, f"ddp-{case}", 1)
        state = found["weights"]
    else:
        state = LANGUAGE[case].fit(layout, runs.models).lightning_module.state_dict()
    torch.testing.assert_close(state, runs.one(case)["weights"], atol=1e-6, rtol=0)


@with_layouts(["own-answers"])
def test_processes_share_the_questions_of_own_answers(runs: Runs, case: str, layout: str) -> None:
    for found in runs.each(case, layout):
        assert found == runs.one(case)
        assert len(found["files"]) == 4


@pytest.mark.parametrize("case", ["whole-lm"])
def test_a_tensor_parallel_group_of_whole_models_is_refused(runs: Runs, case: str) -> None:
    for found in runs.each(case, "tp"):
        assert "SgdLM is not taken apart: each process would train a model of its own" in found["message"]
        assert found["batches"] == 0


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MASKED)
def test_every_layout_makes_the_identical_mask(runs: Runs, case: str) -> None:
    one = runs.one(case)["mask"]
    for layout in ("one", "ddp", "fsdp2"):
        assert same(load_mask(runs.each(case, layout)[0]["file"]), one)
    for found in runs.each(case, "ddp"):
        assert same(found["mask"], one)
    parts = [found["mask"] for found in runs.each(case, "fsdp2")]
    assert same({name: torch.cat([part[name] for part in parts]) for name in one}, one)


@pytest.mark.parametrize("case", MASKED)
def test_exactly_so_many_weights_may_move(runs: Runs, case: str) -> None:
    mask, made = load_mask(runs.each(case, "fsdp2")[0]["file"]), MASKS[case]()
    if made.scope == "global":
        assert sum(int(m.sum()) for m in mask.values()) == int(made.density * sum(m.numel() for m in mask.values()))
    elif case == "WAGLE-released":
        assert [int(m.sum()) for m in mask.values()] == [int(made.density * m.numel()) for m in mask.values()]


@with_layouts(MASKED, "one")
def test_frozen_weights_are_bit_identical(runs: Runs, case: str, layout: str) -> None:
    start = MASKED[case].start(runs.models)
    for found in (whole := runs.each(case, layout)[0], whole["resumed"]):
        mask, moved = load_mask(found["file"]), 0
        for name, after in found["weights"].items():
            tied = "model.model.embed_tokens.weight" if name == "model.lm_head.weight" else name
            live = mask.get(tied, torch.zeros(after.shape, dtype=torch.bool))
            assert torch.equal(bits(after)[~live], bits(start[name])[~live])
            moved += int((after[live] != start[name][live]).sum())
        assert moved > 0


@with_layouts(MASKED, "one")
def test_a_resumed_run_has_the_same_mask(runs: Runs, case: str, layout: str) -> None:
    for found in runs.each(case, layout):
        assert same(load_mask(found["resumed"]["file"]), load_mask(found["file"]))


# ---- curvature -------------------------------------------------------------------------------------------------------


@with_layouts(CURVATURE)
def test_the_curvature_is_that_of_one_process(runs: Runs, case: str, layout: str) -> None:
    one, (first, second) = runs.one(case), runs.each(case, layout)
    largest = one["hessian"].abs().max()
    torch.testing.assert_close(first["hessian"] / largest, one["hessian"] / largest, atol=1e-5, rtol=0)
    assert torch.equal(first["hessian"], second["hessian"])
    logged = [{name: value for name, value in found.items() if name.startswith("soul/")} for found in (first, second)]
    assert logged[0] == logged[1]
    assert logged[0]["soul/clip_fraction"] == pytest.approx(one["soul/clip_fraction"], abs=1e-3)


@with_layouts(CURVATURE, "one")
def test_a_resumed_run_has_the_same_momentum_and_curvature(runs: Runs, case: str, layout: str) -> None:
    for found in runs.each(case, layout):
        for name in ("momentum", "hessian"):
            assert torch.equal(found["resumed"][name], found[name])


@pytest.mark.parametrize("alone", CURVATURE)
def test_not_all_steps_are_clipped(runs: Runs, alone: str) -> None:
    assert runs.one(alone)["soul/clip_fraction"] < 0.9


@pytest.mark.parametrize("case", ["sharded-second-derivative"])
def test_a_second_derivative_of_sharded_weights_is_refused(runs: Runs, case: str) -> None:
    for found in runs.each(case, "fsdp2"):
        assert "estimator='gnb', or strategy='ddp'" in found["message"]


@pytest.mark.parametrize("case", ["InfluenceUnlearning"])
def test_every_process_makes_the_same_edit(runs: Runs, case: str) -> None:
    first, second = runs.each(case, "ddp")
    assert same(first["weights"], second["weights"])


@with_layouts(["statistics"])
def test_token_statistics_of_uneven_shares_are_those_of_one_process(runs: Runs, case: str, layout: str) -> None:
    one = runs.one(case)
    for found in runs.each(case, layout):
        assert found["keys"] == one["keys"]
        torch.testing.assert_close(found["values"], one["values"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["knowledge"][:2], one["knowledge"][:2], atol=1e-6, rtol=0)
        assert found["knowledge"][2] == one["knowledge"][2]


@pytest.mark.parametrize("case", ["Audit"])
def test_an_audit_at_the_end_of_a_shared_run_is_that_of_one_process(runs: Runs, case: str) -> None:
    one = runs.one(case)["lightning.pytorch"]
    assert {name for name in one["logged"] if name.startswith("audit/")}
    for found in runs.each(case, "ddp"):
        for package, audit in found.items():
            assert audit["verdict"] == one["verdict"], package
            assert audit["parts"] == one["parts"], package
            assert audit["logged"] == one["logged"], package
            assert audit["values"].keys() == one["values"].keys(), package
            for name, value in one["values"].items():
                wanted = value if value is None else pytest.approx(value, rel=1e-3, abs=1e-4)
                assert audit["values"][name] == wanted, (package, name)


@pytest.mark.parametrize("case", ["sharded-audit"])
def test_an_audit_of_sharded_weights_is_refused(runs: Runs, case: str) -> None:
    for found in runs.each(case, "fsdp2"):
        assert "puts stresses on whole weights" in found["message"]
        assert found["batches"] == 0


@pytest.mark.parametrize("case", ["language-metrics", "rating-metrics"])
def test_metrics_of_shared_rows_count_each_row_once(runs: Runs, case: str) -> None:
    pytest.importorskip("scipy")
    one = runs.one(case)
    for found in runs.each(case, "ddp"):
        assert found.keys() == one.keys()
        for name, numbers in one.items():
            assert found[name] == pytest.approx(numbers, abs=1e-12, nan_ok=True), name


# ---- classifiers, a user's own net and pipelines --------------------------------------------------------------------


def test_every_public_method_and_mask_is_in_the_table() -> None:
    tables = (LANGUAGE, MASKED, CLASSIFIERS, ERASERS, {"edit": EDIT})
    trainings = [training for table in tables for training in table.values()]
    table = {type(part).__name__ for training in trainings for part in training.callbacks(Path())}
    classes = [getattr(lightning_unlearn, name) for name in lightning_unlearn.__all__]
    kinds = (UnlearnCallback, WeightMask)
    public = {c.__name__ for c in classes if inspect.isclass(c) and issubclass(c, kinds) and not inspect.isabstract(c)}
    assert public - table == {"Amnesiac"}  # it reads what a run before has written, and has one process


@with_layouts(["whole-net"])
def test_a_module_that_is_not_taken_apart_is_refused_before_any_step(runs: Runs, case: str, layout: str) -> None:
    for found in runs.each(case, layout):
        assert "WholeNet is not taken apart: each process would train a model of its own" in found["message"]
        assert found["batches"] == 0


@pytest.mark.parametrize("case", ["odd"])
def test_an_odd_number_of_rows_makes_a_difference_in_one_step_of_an_epoch(runs: Runs, case: str) -> None:
    """Of 15 rows, two processes read one twice, so that in its step of four it weighs 2/4 and not 1/3."""
    one, (first, second) = runs.one(case)["steps"], (found["steps"] for found in runs.each(case, "ddp"))
    read = [sorted(a + b) for (a, _), (b, _) in zip(first, second, strict=True)]
    sizes = [len(rows) for rows, _ in one]
    assert sorted(sizes) == [3, 4, 4, 4]
    short = sizes.index(3)
    for step, (rows, _) in enumerate(one):
        assert len(read[step]) == 4
        assert set(rows) <= set(read[step])
    apart = [(a - b).abs().max().item() for (_, a), (_, b) in zip(one, first, strict=True)]
    assert max(apart[:short], default=0) < 1e-6
    moved = (one[short][1] - one[short - 1][1]).abs().max().item()
    assert 0.1 < apart[short] / moved < 1


@with_layouts(["duals"])
def test_processes_hold_the_same_dual_variable(runs: Runs, case: str, layout: str) -> None:
    expected = runs.one(case)["duals"]
    assert expected[0] == 2.0  # the first of two batches that accumulate
    assert expected[1] > 2.0
    for found in runs.each(case, layout):
        assert found["duals"] == pytest.approx(expected, abs=1e-6)
    first, second = (found["duals"] for found in runs.each(case, layout))
    assert first == second


@with_layouts(["reductions"])
def test_a_step_of_npo_reduces_four_times(runs: Runs, case: str, layout: str) -> None:
    """The tokens of the forget and the retain term, everything that is logged, and whether the gradient is finite."""
    for found in runs.each(case, layout):
        assert found["calls"] == [4] * 4


@pytest.mark.parametrize("case", ["ClassifierMonitor"])
def test_a_monitor_counts_no_row_twice(runs: Runs, case: str) -> None:
    pytest.importorskip("sklearn")
    one = runs.one(case)
    assert len(one["history"]) == 2
    assert one["history"][0]["average_gap"] > 0
    for found in runs.each(case, "ddp"):
        for name in ("reference", "validated"):
            assert found[name] == pytest.approx(one[name], abs=1e-4)
        for metrics, wanted in zip(found["history"], one["history"], strict=True):
            assert metrics == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("case", ["Rewind"])
def test_processes_rewind_to_the_epoch_that_one_process_chooses(runs: Runs, case: str) -> None:
    one = runs.one(case)
    assert len(set(one["errors"].values())) > 2
    for found in runs.each(case, "ddp"):
        assert found["errors"] == one["errors"]
        assert found["chosen"] == one["chosen"]
        for name, value in one["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", ["metrics"])
def test_metrics_of_shared_rows_are_those_of_one_process(runs: Runs, case: str) -> None:
    pytest.importorskip("sklearn")
    one = runs.one(case)
    for found in runs.each(case, "ddp"):
        assert found.keys() == one.keys()
        for name in one:
            torch.testing.assert_close(torch.tensor(flat(found[name])), torch.tensor(flat(one[name])), equal_nan=True)


def flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple) else [float(value)]


@pytest.mark.parametrize("case", ["drawn"])
def test_two_processes_draw_what_one_draws(runs: Runs, case: str) -> None:
    one, two = runs.one(case), runs.each(case, "ddp")[0]
    assert two["rows"] == one["rows"]
    assert [row["seed"] for row in one["rows"]] == [0, 1, 2, 3, 4]
    for image, other in zip(one["images"], two["images"], strict=True):
        assert (image - other).abs().max() <= 1


@pytest.mark.parametrize("case", ["image-metrics"])
def test_two_processes_measure_images_as_one_does(runs: Runs, case: str) -> None:
    for found in runs.each(case, "ddp"):
        assert found["found"] == pytest.approx(runs.one(case)["found"], rel=1e-5)


@pytest.mark.parametrize("case", ["swept"])
def test_two_processes_sweep_what_one_sweeps(runs: Runs, case: str) -> None:
    one = runs.one(case)["rows"]
    assert len(one) == 5 * 5
    for found in runs.each(case, "ddp"):
        assert found["rows"] == found["read"]
        assert [row[:4] for row in found["rows"]] == [row[:4] for row in one]
        for row, other in zip(found["rows"], one, strict=True):
            assert row[4:] == pytest.approx(other[4:], rel=1e-3)
