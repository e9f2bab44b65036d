"""Small models, probes and a scorer for the tests of attacks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn import LitCausalLM, Probe, probes_of
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.language.attacks.token_batches import token_batches
from lightning_unlearn.language.knowledge import Knowledge
from tests.conftest import CAPITALS, question

PROBES = probes_of([question(country) for country in CAPITALS])


def log_likelihoods(module: LitCausalLM, probes: Sequence[Probe], batch_size: int = 2) -> Tensor:
    """Mean log-likelihood per token of each answer."""
    parts = []
    with evaluating(module):
        for batch in token_batches(module, probes, batch_size):
            predictions = causal_lm_nll.predictions(module, batch)
            parts.append(-predictions.nll() / predictions.length())
    return torch.cat(parts)


def likelihoods(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
    """A scorer of likelihoods alone."""
    return Knowledge(log_likelihoods(module, probes).exp(), None)


def answers(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
    """A scorer of likelihoods and answers."""
    texts = module.answer([probe.question for probe in probes], max_new_tokens=6, batch_size=4)
    right = [any(word in text for word in probe.accepted) for text, probe in zip(texts, probes, strict=True)]
    return Knowledge(log_likelihoods(module, probes).exp(), torch.tensor(right).float(), [[text] for text in texts])


def victim(folder: Path, seed: int | None = None, **options: Any) -> LitCausalLM:
    """The tiny model, with its weights moved by a seed."""
    module = LitCausalLM(str(folder), **options)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return module


class Unchanged:
    """Asserts that a block leaves a model, its modes, its hooks and the global random state as they were."""

    def __init__(self, *modules: LitCausalLM) -> None:
        self.modules = modules

    def __enter__(self) -> None:
        self.before = [self._state(module) for module in self.modules]
        self.random = torch.get_rng_state()

    @staticmethod
    def _state(module: LitCausalLM) -> Any:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
        modes = [child.training for child in module.modules()]
        objects = [(id(p), p.data_ptr(), p.requires_grad) for p in module.parameters()]
        return copy.deepcopy(module.state_dict()), hooks, modes, objects, id(module.model)

    def __exit__(self, kind: Any, *_: Any) -> None:
        assert torch.equal(self.random, torch.get_rng_state())
        for module, (state, *rest) in zip(self.modules, self.before, strict=True):
            after, *now = self._state(module)
            assert now == rest
            assert list(after) == list(state)
            assert all(torch.equal(after[name], value) for name, value in state.items())
            assert all(parameter.grad is None for parameter in module.parameters())
