"""GradNorm of rows: the gradients of plain autograd, and nothing left behind in the model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lightning_unlearn import LitCausalLM, Probe
from lightning_unlearn.language.gradient_norms import gradient_norms
from tests.language.attacks.worlds import PROBES


@pytest.mark.parametrize(("p", "variant"), [(2.0, "mean"), (1.0, "global"), (math.inf, "mean")])
def test_norms_are_those_of_plain_autograd(tiny_lm: Path, p: float, variant: str) -> None:
    module = LitCausalLM(str(tiny_lm)).train()
    probes = PROBES[:2]
    found = gradient_norms(module, probes, p, variant)  # type: ignore[arg-type]
    for probe, norm in zip(probes, found, strict=True):
        prompt_format = module._prompt_format()
        row = prompt_format.row(probe.question, probe.answer)
        ids = torch.tensor([[*row.prompt, *row.answer]])
        module.eval()
        logits = module.model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer))
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        each = torch.stack([g.flatten().double().norm(p) for g in gradients])
        wanted = each.mean() if variant == "mean" else torch.cat([g.flatten().double() for g in gradients]).norm(p)
        torch.testing.assert_close(norm, wanted, rtol=1e-4, atol=1e-6)


def test_nothing_is_left_in_the_model(tiny_lm: Path) -> None:
    module = LitCausalLM(str(tiny_lm)).train()
    module.model.requires_grad_(False)
    last = next(reversed(list(module.parameters()))).requires_grad_(True)
    last.grad = torch.ones_like(last)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode():
        norms = gradient_norms(module, PROBES[:2])
    assert (norms > 0).all()
    assert norms.shape == (2,)
    assert last.grad.eq(1).all()
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_model_without_a_weight_to_differentiate_is_refused(tiny_lm: Path) -> None:
    module = LitCausalLM(str(tiny_lm)).requires_grad_(False)
    with pytest.raises(ValueError, match="No weight requires a gradient"):
        gradient_norms(module, [Probe(0, "Who?", "Ada.")])
    with pytest.raises(ValueError, match="no row to score"):
        gradient_norms(module, [])
