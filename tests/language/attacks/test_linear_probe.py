"""Linear probe: what it finds, what it can't, and what it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_unlearn import LitCausalLM, Probe
from lightning_unlearn.language.attacks import LinearProbe
from tests.language.attacks.tiny import capitals, snapshot, unchanged


@pytest.fixture(scope="module")
def models(tiny_lm: Path) -> list[LitCausalLM]:
    return [LitCausalLM(str(tiny_lm)) for _ in range(3)]


def rows(kind: str, entities: int, of_each: int = 4) -> list[Probe]:
    """Rows of some entities, without wrong answers."""
    return [Probe(i, f"{kind} {i}?", f"A{i}", entity=f"{kind}{i % entities}") for i in range(entities * of_each)]


def with_features(monkeypatch: pytest.MonkeyPatch, by_model: dict[int, Any]) -> None:
    """Give each model features of one layer in place of its own."""
    monkeypatch.setattr(LinearProbe, "_features", lambda _, module, asked: [by_model[id(module)]])


def test_what_the_unlearned_model_still_has_and_the_control_never_had(
    models: list[LitCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, control, unlearned = models
    forget, never = rows("f", 10), rows("n", 10)
    label = np.array([1.0] * 40 + [-1.0] * 40)
    noise = np.random.default_rng(0)
    features = {id(model): noise.normal(size=(80, 12)) for model in models}
    features[id(original)][:, 0] += 3 * label
    features[id(unlearned)][:, 1] += 3 * label  # in another direction
    with_features(monkeypatch, features)
    found = LinearProbe(original, control, never, layers=[0])(unlearned, forget)
    assert (found.n, found.chance, found.folds, found.skipped) == (80, 0.5, 5, "")
    assert found.original.fresh[0] > 0.95
    assert found.original.transfer == found.original.fresh
    assert found.unlearned.fresh[0] > 0.95
    assert found.unlearned.transfer[0] < 0.75  # the original's probe does not see it
    assert abs(found.control.fresh[0] - 0.5) < 0.2
    assert found.excess == pytest.approx(found.unlearned.fresh[0] - found.control.fresh[0])
    assert found.unlearned.selectivity[0] > 0.25
    assert found.original.shuffled[0] < 0.7


def test_names_by_heart_are_of_no_use(models: list[LitCausalLM], monkeypatch: pytest.MonkeyPatch) -> None:
    original, control, unlearned = models
    forget, never = rows("f", 6), rows("n", 6)
    entity = np.array([int(p.entity[1:]) + 6 * (p.entity[0] == "n") for p in [*forget, *never]])
    one_hot = np.eye(12)[entity]
    with_features(monkeypatch, {id(model): one_hot for model in models})
    found = LinearProbe(original, control, never, layers=[0])(unlearned, forget)
    assert found.original.fresh[0] <= 0.6


def test_the_right_option_is_picked_within_its_question(
    models: list[LitCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, control, unlearned = models
    forget = [Probe(i, f"{i}?", "right", perturbed_answers=("a", "b", "c"), entity=str(i)) for i in range(20)]
    probe = LinearProbe(original, control, target="options", layers=[1])
    asked, labels, _, question = probe._asked(forget)
    assert [labels[question == i].sum() for i in range(20)] == [1] * 20
    assert len({tuple(labels[question == i]) for i in range(20)}) > 1
    assert all(("Proposed answer: right" in str(p.question)) == bool(y) for p, y in zip(asked, labels, strict=True))
    # A shift of each question that drowns the sign of the right option, which is relative to the others.
    shift = 50 * np.random.default_rng(0).normal(size=20)[question]
    features = {id(model): np.stack([shift + labels * (model is not control), shift], 1) for model in models}
    with_features(monkeypatch, features)
    found = probe(unlearned, forget)
    assert found.chance == 0.25
    assert found.unlearned.fresh == found.unlearned.transfer == [1.0]
    assert found.control.fresh[0] < 0.6


def test_too_few_rows_or_entities_are_left_out_with_the_reason(models: list[LitCausalLM]) -> None:
    original, control, unlearned = models
    few = LinearProbe(original, control, rows("n", 3, 3))(unlearned, rows("f", 3, 3))
    assert few.skipped == "18 examples are too few for a probe of 2 classes, which needs 10 a class."
    assert np.isnan(few.excess)
    assert few.unlearned is None
    one = LinearProbe(original, control, rows("n", 3, 10))(unlearned, rows("f", 1, 12))
    assert "of one entity only" in one.skipped


def test_features_are_the_states_at_the_last_token_whatever_the_batch(models: list[LitCausalLM]) -> None:
    original, control, unlearned = models
    probes = capitals()
    before = snapshot(original)
    found = [
        LinearProbe(original, control, probes, layers=[0, 1], batch_size=b)._features(original, probes) for b in (1, 4)
    ]
    assert unchanged(before, original)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    prompt = original._prompt_format().prompt(probes[3].question)
    with torch.no_grad():
        states = original.eval().model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(found[0][0][3], states[1][0, -1].numpy(), atol=1e-5)
    assert found[0][0].shape == (6, 32)
    del control, unlearned


def test_a_probe_of_real_states(models: list[LitCausalLM]) -> None:
    original, control, unlearned = models
    found = LinearProbe(original, control, target="options", folds=2)(unlearned, capitals())
    # Three copies of one model.
    assert found.original == found.control == found.unlearned
    assert found.excess == 0
    assert found.layers == [0, 1]


def test_what_is_missing_is_said(models: list[LitCausalLM]) -> None:
    original, control, _ = models
    with pytest.raises(ValueError, match="never_seen, rows matched to them"):
        LinearProbe(original, control)
    with pytest.raises(ValueError, match=r"layers are numbers of blocks, 0 to 1, but got \[2\]"):
        LinearProbe(original, control, capitals(), layers=[0, 2])
    with pytest.raises(ValueError, match=r"row 0 has none.*perturbed_answer=\.\.\."):
        LinearProbe(original, control, target="options")(original, [Probe(0, "Who?", "Ada")])
    with pytest.raises(ValueError, match="target must be"):
        LinearProbe(original, control, capitals(), target="entity")  # type: ignore[arg-type]
