"""Tiny models of several families that have learned some capitals, and what attacks are measured by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn import LitCausalLM, Probe, probes_of
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.language.attacks.latent import span_batches
from lightning_unlearn.language.knowledge import Knowledge
from lightning_unlearn.language.matching import contains_words
from tests.conftest import CAPITALS, question


def capitals(*countries: str) -> list[Probe]:
    """Probes with an entity, a paraphrase and wrong answers."""
    rows = [
        question(country)
        | {
            "entity": country,
            "paraphrased_question": [f"Which city is the capital of {country}?", f"Name the capital of {country}."],
            "perturbed_answer": [f"The capital of {country} is {city}." for city in ("Oslo", "Bern", "Kiev")],
        }
        for country in countries or CAPITALS
    ]
    return probes_of(rows)


def scorer(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
    """Probability of the answer a token, and whether the greedy answer is right."""
    prompt_format = module._prompt_format()
    conversations = [prompt_format.conversation(prompt_format.messages(p.question), p.answer) for p in probes]
    rows = prompt_format.rows(conversations)
    strengths = []
    with evaluating(module):
        for batch in span_batches(rows, 16, module.device):
            predictions = causal_lm_nll.predictions(module, batch.inputs)
            strengths.append((-predictions.nll() / predictions.length()).exp())
    answers = module.answer([probe.question for probe in probes], max_new_tokens=12)
    right = [float(any(contains_words(a, s) for s in p.accepted)) for p, a in zip(probes, answers, strict=True)]
    return Knowledge(torch.cat(strengths), torch.tensor(right), [[answer] for answer in answers])


def taught(folder: Path, probes: Sequence[Probe], steps: int = 120, lr: float = 1e-2) -> LitCausalLM:
    """The tiny model after some steps on a few rows."""
    module = LitCausalLM(str(folder))
    rows = module._prompt_format().rows(
        [module._prompt_format().conversation(module._prompt_format().messages(p.question), p.answer) for p in probes]
    )
    (batch,) = span_batches(rows, len(rows), module.device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    for _ in range(steps):
        causal_lm_nll(module, batch.inputs).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module


def snapshot(module: LitCausalLM) -> dict[str, Any]:
    """All that an attack has to leave as it was."""
    children = list(module.modules())
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "flags": [p.requires_grad for p in module.parameters()],
        "grads": [p.grad for p in module.parameters()],
        "modes": [child.training for child in children],
        "hooks": [len(child._forward_hooks) + len(child._forward_pre_hooks) for child in children],
        "own": [sorted(vars(child)) for child in children],
        "rng": torch.get_rng_state(),
    }


def unchanged(before: dict[str, Any], module: LitCausalLM) -> bool:
    """Whether a module and the global random state are as they were."""
    after = snapshot(module)
    same = all(torch.equal(before["weights"][name], value) for name, value in after["weights"].items())
    rest = all(before[name] == after[name] for name in ("flags", "grads", "modes", "hooks", "own"))
    return same and rest and torch.equal(before["rng"], after["rng"])
