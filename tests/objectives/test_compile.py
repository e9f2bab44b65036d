"""Objectives train a compiled model to the weights of the model as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers import AutoModelForCausalLM

from lightning_unlearn import LitCausalLM
from tests.tiny_runs import CASES, LORA, Run, fit, rows_of

# Tracing takes seconds. These have each kind of pass: of two, three and one role, with a snapshot, and with hooks; all
# others are slow tests.
QUICK = ("AltPO", "GradDiff-layer", "KTO", "NPO-snapshot-kl", "SimNPO", "UNDIAL")
every_objective = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]
)


def short(module: LitCausalLM) -> LitCausalLM:
    """One block is enough: tracing takes time."""
    decoder = module.model.get_decoder()
    decoder.layers = decoder.layers[:1]
    return module


def compiled(backend: str) -> Callable[[LitCausalLM], LitCausalLM]:
    def prepare(module: LitCausalLM) -> LitCausalLM:
        module.model = torch.compile(short(module).model, backend=backend)
        return module

    return prepare


def fit_short(case: str, folder: Path, prepare: Callable[[LitCausalLM], Any] = short, **options: Any) -> Run:
    # With the default attention, a mask that hides nothing is left out, but not while a model is traced, and then the
    # bits differ. Hooks that count would be traced too.
    options["model"] = {"attn_implementation": "eager", **options.get("model", {})}
    return fit(case, folder, prepare=prepare, watch=False, **options)


@pytest.fixture(scope="module")
def uncompiled(tiny_lm: Path) -> Callable[[str], Run]:
    runs: dict[str, Run] = {}

    def of(case: str) -> Run:
        if case not in runs:
            runs[case] = fit_short(case, tiny_lm)
        return runs[case]

    return of


@pytest.fixture(scope="module", autouse=True)
def nothing_compiled_is_left() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.fixture
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize(("case", "graphs"), [("SimNPO", 2), pytest.param("NPO-snapshot", 4, marks=pytest.mark.slow)])
def test_nothing_is_compiled_anew_for_each_batch(case: str, graphs: int, tiny_lm: Path) -> None:
    run = fit_short(case, tiny_lm, compiled("eager"), max_epochs=2)
    assert len({step.tokens["forget"] + step.tokens["retain"] for step in run.steps}) > 3
    # One for the first shape and one for any other, with gradient and without.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert not torch._dynamo.utils.counters["graph_break"]


@every_objective
def test_a_compiled_model_trains_the_same_weights(case: str, tiny_lm: Path, uncompiled: Callable[[str], Run]) -> None:
    # Graphs are kept from one case to the next. Without the limit, whatever does not fit them would run uncompiled.
    # The guards let a graph see hooks that come later, as the error below asks for.
    with torch._dynamo.config.patch(
        recompile_limit=16, fail_on_recompile_limit_hit=True, skip_nnmodule_hook_guards=False
    ):
        run = fit_short(case, tiny_lm, compiled("eager"))
    assert torch.equal(run.weights(), uncompiled(case).weights())


@pytest.mark.slow
@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("case", ["GradDiff-layer", "RMU"])
def test_a_graph_that_is_older_than_a_hook_is_an_error_with_the_way_out(case: str, tiny_lm: Path) -> None:
    def validated(module: LitCausalLM) -> LitCausalLM:
        compiled("eager")(module).model.eval()
        ids = torch.arange(40).reshape(2, 20)
        for width in (19, 20):  # two shapes, so that the second graph takes any
            with torch.no_grad():
                module(ids[:, :width], torch.ones_like(ids[:, :width]))
        module.model.train()
        return module

    # What RMU trains by itself: a graph is not taken where other weights are frozen.
    model = {"trainable": r"mlp\.down_proj"}
    with pytest.raises(MisconfigurationException, match="skip_nnmodule_hook_guards = False"):
        fit_short(case, tiny_lm, validated, model=model)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        run = fit_short(case, tiny_lm, validated, model=model)
    assert torch.equal(run.weights(), fit_short(case, tiny_lm, model=model).weights())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["SimNPO", "NPO-snapshot"])
def test_a_model_compiled_forward_and_backward_trains_the_same_weights(
    case: str, tiny_lm: Path, uncompiled: Callable[[str], Run]
) -> None:
    run = fit_short(case, tiny_lm, compiled("aot_eager"))
    torch.testing.assert_close(run.weights(), uncompiled(case).weights(), rtol=0, atol=1e-6)


def test_adapters_are_switched_off_for_the_reference_in_a_compiled_model(tiny_lm: Path) -> None:
    model = {"lora": LORA}
    plain, run = (fit_short("KLMinimization", tiny_lm, how, model=model) for how in (short, compiled("eager")))
    assert run.steps[-1].parts["retain"] > 0
    assert torch.equal(run.weights(), plain.weights())


@pytest.mark.parametrize("how", ["module.compile()", "fit(torch.compile(module))"])
def test_the_module_itself_may_be_compiled(how: str, tiny_lm: Path, uncompiled: Callable[[str], Run]) -> None:
    def prepare(module: LitCausalLM) -> Any:
        if how == "fit(torch.compile(module))":
            return torch.compile(short(module), backend="eager")
        short(module).compile(backend="eager")
        return module

    run = fit_short("SimNPO", tiny_lm, prepare)
    assert torch.equal(run.weights(), uncompiled("SimNPO").weights())


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_compiled_model_is_saved_like_any_other(lora: dict[str, Any] | None, tiny_lm: Path, tmp_path: Path) -> None:
    module = LitCausalLM(str(tiny_lm), lora=lora)
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = rows_of(module.tokenizer)
    wanted = module.model.eval()(**batch).logits
    module.model = torch.compile(module.model, backend="eager")
    module.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(saved(**batch).logits, wanted)
