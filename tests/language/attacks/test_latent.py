"""Latent states: exact ends of the depth score, a lens that ends in the logits, and families of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_unlearn import LitCausalLM
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.functional import depth_score
from lightning_unlearn.language.attacks import DepthScore, LogitLens
from lightning_unlearn.language.attacks.latent import (
    FixedDecoder,
    blocks_of,
    read_span,
    span_batches,
    span_log_prob,
    span_of,
    span_rows,
)
from tests.language.attacks.families import FAMILIES, family
from tests.language.attacks.tiny import capitals, snapshot, unchanged

DECODED = [name for name in FAMILIES if name != "cohere"]


@pytest.fixture(scope="module", params=DECODED)
def models(request: pytest.FixtureRequest, tiny_lm: Path) -> list[LitCausalLM]:
    """Original, control and unlearned model of a family; they share nothing but the form."""
    return [family(request.param, tiny_lm, seed) for seed in range(3)]


def hooked_gaps(original: LitCausalLM, source: LitCausalLM) -> torch.Tensor:
    """What the original loses, with all of its blocks run and hooks that put the states in."""
    rows = span_rows(original._prompt_format(), capitals())
    (batch,) = span_batches(rows, len(rows), original.device)
    places, gaps = (batch.rows, batch.columns), []
    with torch.no_grad():
        plain = span_log_prob(causal_lm_nll.predictions(original.eval(), batch.inputs))
        _, theirs = read_span(source.eval(), batch)
        for number, block in enumerate(blocks_of(original)):

            def put(_: nn.Module, __: Any, output: Any, number: int = number) -> Any:
                state = (output if isinstance(output, torch.Tensor) else output[0]).clone()
                state[places] = theirs[number][places]
                return state if isinstance(output, torch.Tensor) else (state, *output[1:])

            handle = block.register_forward_hook(put)
            gaps.append(plain - span_log_prob(causal_lm_nll.predictions(original, batch.inputs)))
            handle.remove()
    return torch.stack(gaps)


def test_the_depth_score_of_the_control_is_1_and_of_the_original_0(models: list[LitCausalLM]) -> None:
    original, control, unlearned = models
    score = DepthScore(original, control, batch_size=4)
    probes = capitals()
    of_control, of_original, of_unlearned = (score(model, probes) for model in (control, original, unlearned))
    assert of_control.n > 0
    rated = of_control.scores.isfinite()
    assert (of_control.scores[rated] == 1).all()
    assert (of_original.scores[rated] == 0).all()
    assert (of_original.unlearned_gaps == 0).all()
    torch.testing.assert_close(of_control.control_gaps, hooked_gaps(original, control), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_unlearned.unlearned_gaps, hooked_gaps(original, unlearned), rtol=1e-4, atol=1e-4)
    expected = depth_score(of_unlearned.control_gaps, of_unlearned.unlearned_gaps)
    torch.testing.assert_close(of_unlearned.scores, expected, equal_nan=True)


def test_the_lens_ends_in_the_models_own_logits(models: list[LitCausalLM]) -> None:
    original, control, _ = models
    probes = capitals()
    rows = span_rows(original._prompt_format(), probes)
    (batch,) = span_batches(rows, len(rows), original.device)
    with torch.no_grad():
        predictions, states = read_span(original.eval(), batch)
        logits = FixedDecoder(original)(states[-1][batch.rows, batch.columns])
    assert (logits - predictions.logits).abs().max() <= 1e-5 * max(1.0, predictions.logits.abs().max().item())
    lens = LogitLens(original, control, batch_size=4)
    found = lens(control, probes)
    torch.testing.assert_close(found.original.log_prob[-1], span_log_prob(predictions), rtol=1e-4, atol=1e-4)
    hit = (predictions.logits.argmax(1) == predictions.labels).float()
    rank = (predictions.logits > predictions.logits.gather(1, predictions.labels[:, None])).sum(1).float()
    of_first = predictions.rows == 0
    assert found.original.hit[-1, 0].item() == pytest.approx(hit[of_first].mean().item())
    assert found.original.rank[-1, 0].item() == pytest.approx(rank[of_first].mean().item())
    rated = found.scores.isfinite()
    assert (found.scores[rated] == 1).all()
    assert (lens(original, probes).scores[rated] == 0).all()


def test_the_models_are_left_as_they_were(tiny_lm: Path) -> None:
    models = [family("llama", tiny_lm, seed) for seed in range(3)]
    models[0].train()
    before = [snapshot(model) for model in models]
    for evidence in (DepthScore(models[0], models[1]), LogitLens(models[0], models[1])):
        evidence(models[2], capitals())
        assert all(unchanged(kept, model) for kept, model in zip(before, models, strict=True))


def test_an_exception_leaves_the_blocks_as_they_were(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, control = family("llama", tiny_lm), family("llama", tiny_lm, 1)
    before, passes = snapshot(original), iter(range(100))
    forward = type(original).forward

    def failing(*args: Any, **inputs: Any) -> Any:
        if next(passes) == 3:
            raise RuntimeError("out of memory")
        return forward(*args, **inputs)

    monkeypatch.setattr(type(original), "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        DepthScore(original, control)(control, capitals())
    assert unchanged(before, original)


def test_the_controls_gaps_are_computed_once(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, control, unlearned = (family("llama", tiny_lm, seed) for seed in range(3))
    score, sources = DepthScore(original, control), []
    gaps = DepthScore._gaps
    monkeypatch.setattr(DepthScore, "_gaps", lambda s, source, p: sources.append(source) or gaps(s, source, p))
    score(unlearned, capitals())
    score(original, capitals())
    assert sources == [control, unlearned, original]
    score(original, capitals("France", "Peru"))
    assert sources == [control, unlearned, original, control, original]


def test_the_span_is_the_part_of_the_answer_that_holds_the_fact() -> None:
    (probe,) = capitals("France")
    assert span_of(probe) == "Paris"
    assert span_of(replace(probe, target="is Paris")) == "is Paris"
    assert span_of(replace(probe, accept=("Lutetia",))) == probe.answer


def test_a_norm_that_is_not_known_is_refused_by_the_models_name(tiny_lm: Path) -> None:
    module = family("llama", tiny_lm)
    inner = module.model.model
    inner.last_scaling = inner.norm
    del inner.norm
    with pytest.raises(
        MisconfigurationException, match=r"LlamaForCausalLM it can't find its final norm.*'model\.layers'"
    ):
        LogitLens(module, module)


def test_a_decoder_that_does_not_give_the_logits_is_refused(tiny_lm: Path) -> None:
    module = family("cohere", tiny_lm)  # it scales its logits behind the head
    with pytest.raises(MisconfigurationException, match="head of the CohereForCausalLM do not give its logits"):
        LogitLens(module, module)(module, capitals())
    assert DepthScore(module, module)(module, capitals()).unlearned_gaps.abs().max() == 0


def test_models_of_another_form_are_refused(tiny_lm: Path) -> None:
    original, other = family("llama", tiny_lm), LitCausalLM(str(tiny_lm))
    with pytest.raises(ValueError, match="unlearned model has 2 blocks of width 32, and the original 3 of width 16"):
        DepthScore(original, original)(other, capitals())
    with pytest.raises(ValueError, match="control model"):
        LogitLens(original, other)(original, capitals())
