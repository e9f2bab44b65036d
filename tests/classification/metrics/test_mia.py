"""Membership inference against scikit-learn called by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_unlearn.classification.metrics.accuracy import UA
from lightning_unlearn.classification.metrics.mia import MIAEfficacy, mia_efficacy, training_privacy

svm = pytest.importorskip("sklearn.svm")
linear_model = pytest.importorskip("sklearn.linear_model")


def beta(rows: int, a: float, b: float, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).beta(a, b, rows)).float()


MEMBERS, NONMEMBERS, FORGET = beta(90, 9, 1, 0), beta(60, 2, 2, 1), beta(50, 4, 2, 2)


def logits_of(confidence: Tensor) -> tuple[Tensor, Tensor]:
    p = confidence.clamp(1e-4, 1 - 1e-4)
    return torch.stack([p, (1 - p) * 0.6, (1 - p) * 0.4], 1).log(), torch.zeros(len(p), dtype=torch.long)


def by_hand(model: Any, members: Tensor, nonmembers: Tensor, forget: Tensor) -> float:
    x = np.concatenate([members.numpy(), nonmembers.numpy()]).astype(np.float64)[:, None]
    y = np.r_[np.ones(len(members)), np.zeros(len(nonmembers))]
    predicted = model.fit(x, y).predict(forget.numpy().astype(np.float64)[:, None])
    return 100 * (predicted == 0).sum() / len(forget)


def test_the_published_attack_is_the_svc_on_the_first_rows() -> None:
    expected = by_hand(svm.SVC(C=3, kernel="rbf", gamma="auto"), MEMBERS[:60], NONMEMBERS, FORGET)
    assert 0 < expected < 100
    assert mia_efficacy(MEMBERS, NONMEMBERS, FORGET, shadow="first") == pytest.approx(expected)
    model = linear_model.LogisticRegression(class_weight="balanced")
    expected = by_hand(model, MEMBERS[:60], NONMEMBERS, FORGET)
    assert mia_efficacy(MEMBERS, NONMEMBERS, FORGET, shadow="first", attack="logistic") == pytest.approx(expected)


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    shuffled = MEMBERS[torch.randperm(90, generator=torch.Generator().manual_seed(3))]
    for seed in range(3):
        options: dict[str, Any] = {"seed": seed, "max_shadow": 20}
        assert mia_efficacy(shuffled, NONMEMBERS.flip(0), FORGET, **options) == mia_efficacy(
            MEMBERS, NONMEMBERS, FORGET, **options
        )
    assert len({mia_efficacy(MEMBERS, NONMEMBERS, FORGET, seed=s, max_shadow=10) for s in range(6)}) > 1


def test_global_random_states_are_left_alone() -> None:
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    mia_efficacy(MEMBERS, NONMEMBERS, FORGET)
    training_privacy(MEMBERS, NONMEMBERS)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert python_state == random.getstate()


def test_stratified_rows_have_the_same_classes_on_both_sides() -> None:
    # Rows of class 0 are sure and those of class 1 are not. Drawn evenly, the class would pass for membership.
    members = torch.cat([torch.full((80,), 0.99), torch.full((20,), 0.4)])
    labels = torch.cat([torch.zeros(80), torch.ones(20)]).long()
    nonmembers = torch.cat([torch.full((20,), 0.99), torch.full((80,), 0.4)])
    test_labels = torch.cat([torch.zeros(20), torch.ones(80)]).long()
    forget = torch.full((10,), 0.99)
    assert mia_efficacy(members, nonmembers, forget) == 0
    private = training_privacy(members, nonmembers)
    assert private > 70
    options: dict[str, Any] = {"shadow": "stratified", "member_labels": labels, "nonmember_labels": test_labels}
    assert training_privacy(members, nonmembers, **options) == pytest.approx(50, abs=15)
    with pytest.raises(ValueError, match="needs member_labels"):
        mia_efficacy(members, nonmembers, forget, shadow="stratified")
    with pytest.raises(ValueError, match="no class in common"):
        mia_efficacy(members, nonmembers, forget, **options | {"nonmember_labels": test_labels + 5})


def test_privacy_is_at_chance_for_equal_distributions() -> None:
    values = [training_privacy(beta(200, 2, 2, s), beta(200, 2, 2, 50 + s), attack="logistic") for s in range(10)]
    assert np.mean(values) == pytest.approx(50, abs=4)
    # An SVC judged on the rows it was fitted to would find members among noise.
    assert training_privacy(MEMBERS, NONMEMBERS) > 70


def test_a_feature_that_says_nothing_is_announced() -> None:
    with pytest.warns(UserWarning, match="means nothing"):
        mia_efficacy(torch.ones(5), torch.ones(5), torch.ones(5))


def test_the_class_equals_the_function_and_correctness_equals_ua() -> None:
    metric = MIAEfficacy()
    for role, values in (("member", MEMBERS), ("nonmember", NONMEMBERS), ("forget", FORGET)):
        for part in values.split(32):
            metric.update(*logits_of(part), role)
    efficacy = metric.compute()
    assert efficacy.keys() == {"confidence", "correctness", "entropy", "modified_entropy", "prob"}
    clamped = [values.clamp(1e-4, 1 - 1e-4) for values in (MEMBERS, NONMEMBERS, FORGET)]
    assert efficacy["confidence"] == pytest.approx(mia_efficacy(*clamped), abs=2.1)  # a row on the border may differ
    assert MIAEfficacy(["confidence"]).features == ("confidence",)
    alone = MIAEfficacy(["confidence"])
    for role, values in (("member", MEMBERS), ("nonmember", NONMEMBERS), ("forget", FORGET)):
        alone.update(*logits_of(values), role)
    assert alone.compute()["confidence"] == efficacy["confidence"]
    ua = UA()
    ua.update(*logits_of(FORGET))
    assert efficacy["correctness"] == pytest.approx(ua.compute().item(), abs=1e-4)


def test_all_probabilities_are_as_wide_as_the_model_and_share_one_kernel() -> None:
    """Class 3 of 4 is in no test row, and its column is there: gamma is 1/4."""
    generator = torch.Generator().manual_seed(0)
    sets: dict[Any, Any] = {}
    for role, rows, classes, sure in (("member", 40, 4, 3.0), ("nonmember", 30, 3, 1.0), ("forget", 20, 1, 1.5)):
        labels = torch.randint(classes, (rows,), generator=generator)
        logits = torch.randn(rows, 4, generator=generator) + sure * torch.nn.functional.one_hot(labels, 4)
        sets[role] = logits, labels
    metric = MIAEfficacy(["prob", "confidence"], shadow="first")
    for role, (logits, labels) in sets.items():
        for part in torch.arange(len(labels)).split(16):
            metric.update(logits[part], labels[part], role)
    p = {role: logits.softmax(1) for role, (logits, _) in sets.items()}
    x = np.concatenate([p["member"][:30].numpy(), p["nonmember"].numpy()]).astype(np.float64)
    attack = svm.SVC(C=3, kernel="rbf", gamma=1 / 4).fit(x, np.repeat([1, 0], 30))
    expected = 100 * (attack.predict(p["forget"].double().numpy()) == 0).mean()
    assert 0 < expected < 100
    assert metric.compute()["prob"] == pytest.approx(expected)
    shuffled = [values[torch.randperm(len(values), generator=generator)] for values in p.values()]
    assert mia_efficacy(*shuffled, max_shadow=12) == mia_efficacy(*p.values(), max_shadow=12)


def test_a_forgotten_class_is_found_unseen_by_a_retrained_model() -> None:
    retrained = MIAEfficacy(["confidence"])
    retrained.update(*logits_of(beta(60, 30, 1, 3)), "member")
    retrained.update(*logits_of(beta(60, 3, 1, 4)), "nonmember")
    retrained.update(*logits_of(torch.full((20,), 1e-3)), "forget")
    assert retrained.compute()["confidence"] == 100


def test_errors() -> None:
    with pytest.raises(ValueError, match="nonmembers are empty"):
        mia_efficacy(MEMBERS, torch.empty(0), FORGET)
    with pytest.raises(ValueError, match=r"shape \(N,\)"):
        mia_efficacy(MEMBERS[:, None, None], NONMEMBERS, FORGET)
    with pytest.raises(ValueError, match="equally many numbers a row"):
        mia_efficacy(torch.rand(9, 3), torch.rand(9, 3), torch.rand(9, 2))
    with pytest.raises(ValueError, match="NaN"):
        mia_efficacy(MEMBERS, NONMEMBERS, FORGET * torch.nan)
    with pytest.raises(ValueError, match="'svc' or 'logistic'"):
        MIAEfficacy(attack="forest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features must be"):
        MIAEfficacy(["loss"])
    with pytest.raises(ValueError, match="max_shadow"):
        MIAEfficacy(max_shadow=0)
    with pytest.raises(ValueError, match="role must be"):
        MIAEfficacy().update(*logits_of(FORGET), "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Two rows"):
        training_privacy(MEMBERS[:1], NONMEMBERS[:1])
