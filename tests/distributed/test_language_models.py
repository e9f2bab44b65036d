"""DDP and FSDP2 on two processes train a language model as one process does with the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_unlearn import LitCausalLM, load_mask
from tests.distributed.cases import CASES, CURVATURE, LANGUAGE, MASKED, MASKS, Training
from tests.distributed.launch import Runs, chosen, launch, load, with_layouts
from tests.helpers import bits, same

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3000)]

TRAININGS = [*LANGUAGE, *MASKED, *CURVATURE, "InfluenceUnlearning"]
RESUMED = [*LANGUAGE, *MASKED, *CURVATURE]
# Shards are read and exchanged in as many ways as objectives read the model: each way is among the quick tests, and
# further losses of what is read in one of these ways are slow tests.
SLOW = {
    (case, "fsdp2")
    for case in (
        *("AltPO", "CEU", "GradDiff", "GradDiff-ramp", "GradDiff-refusal", "GradientAscent", "IdkDPO", "IdkNLL"),
        *("IdkDPO-snapshot", "KTO-snapshot", "NPO-kl", "NPO-snapshot", "SatImp", "UNDIAL-retain", "WGA"),
    )
}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    models = tmp_path_factory.mktemp("models")
    (models / "lm").symlink_to(tiny_lm)
    noise = torch.Generator().manual_seed(0)
    state = LitCausalLM(str(tiny_lm)).state_dict()
    state = {name: value + 0.1 * torch.randn(value.shape, generator=noise) for name, value in state.items()}
    torch.save({"state_dict": state}, models / "reinforced.ckpt")  # another model of the same shape
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
    assert moved > 1e-4


@with_layouts(LANGUAGE, slow=SLOW)
def test_monitors_of_both_processes_measure_what_one_measures(runs: Runs, case: str, layout: str) -> None:
    expected = runs.one(case)["history"]
    assert len(expected) == 3
    for found in runs.each(case, layout):
        for metrics, wanted in zip(found["history"], expected, strict=True):
            assert metrics == pytest.approx(wanted, abs=1e-3)


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


@pytest.mark.parametrize("case", ["whole-lm"])
def test_a_tensor_parallel_group_of_whole_models_is_refused(runs: Runs, case: str) -> None:
    for found in runs.each(case, "tp"):
        assert "SgdLM is not taken apart: each process would train a model of its own" in found["message"]
        assert found["batches"] == 0


@with_layouts(["statistics"])
def test_token_statistics_of_uneven_shares_are_those_of_one_process(runs: Runs, case: str, layout: str) -> None:
    one = runs.one(case)
    for found in runs.each(case, layout):
        assert found["keys"] == one["keys"]
        torch.testing.assert_close(found["values"], one["values"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["knowledge"][:2], one["knowledge"][:2], atol=1e-6, rtol=0)
        assert found["knowledge"][2] == one["knowledge"][2]


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


@pytest.mark.parametrize("case", ["language-metrics"])
def test_metrics_of_shared_rows_count_each_row_once(runs: Runs, case: str) -> None:
    pytest.importorskip("scipy")
    one = runs.one(case)
    for found in runs.each(case, "ddp"):
        assert found.keys() == one.keys()
        for name, numbers in one.items():
            assert found[name] == pytest.approx(numbers, abs=1e-12, nan_ok=True), name
