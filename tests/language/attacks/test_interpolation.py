"""Interpolation attack: weights in between, and both models left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_unlearn.language.attacks import InterpolationAttack
from tests.language.attacks.worlds import PROBES, Unchanged, likelihoods, victim


def test_weights_lie_between_the_two_models(tiny_lm: Path) -> None:
    module, original = victim(tiny_lm, seed=1), victim(tiny_lm, seed=2)
    attack = InterpolationAttack(original, 0.25)
    with Unchanged(module, original), attack.interpolated(module):
        for weight, mine, theirs in zip(
            module.model.parameters(),
            victim(tiny_lm, seed=1).model.parameters(),
            original.model.parameters(),
            strict=True,
        ):
            torch.testing.assert_close(weight.detach(), (mine + 0.25 * (theirs - mine)).detach())
        assert module.model.lm_head.weight is module.model.get_input_embeddings().weight


def test_its_ends_are_the_models_themselves(tiny_lm: Path) -> None:
    module, original = victim(tiny_lm, seed=1), victim(tiny_lm, seed=2)
    start = InterpolationAttack(original, 0.0).knowledge(module, PROBES, likelihoods)
    end = InterpolationAttack(original, 1.0).knowledge(module, PROBES, likelihoods)
    assert torch.equal(start.strength, likelihoods(module, PROBES).strength)  # type: ignore[arg-type]
    assert torch.equal(end.strength, likelihoods(original, PROBES).strength)  # type: ignore[arg-type]
    itself = InterpolationAttack(original, 0.5).knowledge(original, PROBES, likelihoods)
    assert torch.equal(itself.strength, likelihoods(original, PROBES).strength)  # type: ignore[arg-type]


def test_models_of_two_kinds_are_refused(tiny_lm: Path) -> None:
    module, original = victim(tiny_lm), victim(tiny_lm)
    original.model.model.layers = original.model.model.layers[:1]
    with pytest.raises(ValueError, match="differ in the names or shapes"):
        InterpolationAttack(original).knowledge(module, PROBES, likelihoods)


def test_adapters_are_merged_first(tiny_lm: Path) -> None:
    module = victim(tiny_lm, lora={"r": 2, "target_modules": ["q_proj"]}, seed=1)
    with Unchanged(module):
        end = InterpolationAttack(original := victim(tiny_lm), 1.0).knowledge(module, PROBES, likelihoods)
    assert torch.equal(end.strength, likelihoods(original, PROBES).strength)  # type: ignore[arg-type]
