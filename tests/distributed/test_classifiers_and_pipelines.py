"""Two processes train and measure classifiers, a user's own net and a pipeline as one process does."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_unlearn
from lightning_unlearn import UnlearnCallback, WeightMask
from tests.distributed.cases import CASES, CLASSIFIERS, EDIT, ERASERS, LANGUAGE, MASKED, Faster, Training
from tests.distributed.launch import Runs, chosen, with_layouts
from tests.helpers import same

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3000)]

USERS = ["NPO-users", "KLMinimization-users"]
TRAININGS = [*CLASSIFIERS, *USERS, *ERASERS]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    models = tmp_path_factory.mktemp("models")
    (models / "pipeline").symlink_to(tiny_sd)
    torch.manual_seed(0)
    torch.save({name: -value for name, value in Faster().state_dict().items()}, models / "retrained.pt")
    return Runs(chosen(request), models, tmp_path_factory.mktemp("results"))


@with_layouts(TRAININGS)
def test_both_processes_have_the_weights_of_one(runs: Runs, case: str, layout: str) -> None:
    training = CASES[case]
    assert isinstance(training, Training)
    for found in runs.each(case, layout):
        torch.testing.assert_close(found["weights"], runs.one(case)["weights"], atol=training.atol, rtol=0)


@pytest.mark.parametrize("alone", TRAININGS)
def test_every_run_moves_the_weights(runs: Runs, alone: str) -> None:
    training, end = CASES[alone], runs.one(alone)["weights"]
    assert isinstance(training, Training)
    assert max((end[name] - value).abs().max() for name, value in training.start(runs.models).items()) > 1e-3


def test_every_public_method_and_mask_is_in_the_table() -> None:
    tables = (LANGUAGE, MASKED, CLASSIFIERS, ERASERS, {"edit": EDIT})
    trainings = [training for table in tables for training in table.values()]
    table = {type(part).__name__ for training in trainings for part in training.callbacks(Path())}
    classes = [getattr(lightning_unlearn, name) for name in lightning_unlearn.__all__]
    kinds = (UnlearnCallback, WeightMask)
    public = {c.__name__ for c in classes if inspect.isclass(c) and issubclass(c, kinds) and not inspect.isabstract(c)}
    assert public - table == {"Amnesiac"}  # it reads what a run before has written, and has one process


@with_layouts(USERS, "one")
def test_a_resumed_run_ends_in_the_same_bits(runs: Runs, case: str, layout: str) -> None:
    for found in runs.each(case, layout):
        assert same(found["resumed"]["weights"], found["weights"])


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
