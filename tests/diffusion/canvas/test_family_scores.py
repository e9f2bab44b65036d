"""Read-outs of families of prompts, on counts made by hand."""

from __future__ import annotations

import json
from statistics import harmonic_mean

import pytest
import torch

from lightning_unlearn.diffusion.attacks.result import wilson_interval
from lightning_unlearn.diffusion.canvas.family_scores import (
    FamilyCounts,
    family_rates,
    hardest_family,
    overall_score,
)
from lightning_unlearn.diffusion.canvas.nested_bootstrap import nested_bootstrap


def counts(shown: list[int], base: list[int] | None = None, rest: int = 5) -> FamilyCounts:
    return FamilyCounts(tuple(shown), tuple(base or [5] * len(shown)), (rest,) * len(shown), 5)


BY_HAND = {
    "name": counts([0, 0]),
    "variant": counts([5, 0, 0, 0]),
    "superclass": counts([2, 0], [3, 1]),
}


def test_rates_by_hand() -> None:
    """Name 0 of 10, variant 5 of 20, superclass 2 of 10 where the base shows 4."""
    rates = family_rates([BY_HAND])
    assert rates["name"].ua == 1
    assert rates["variant"].ua == 0.75
    assert rates["variant"].gap is not None
    assert rates["variant"].gap.value == 0.25
    assert rates["superclass"].shown.value == pytest.approx(0.2)
    assert rates["superclass"].change.value == pytest.approx(-0.2)
    assert rates["superclass"].passed is rates["superclass"].gap is rates["name"].gap is None
    assert (rates["variant"].shown.low, rates["variant"].shown.high) == wilson_interval(5, 20)
    assert list(rates) == ["name", "variant", "superclass"]


def test_one_number_is_the_harmonic_mean_with_the_hardest_family() -> None:
    rates = family_rates([{**BY_HAND, "prefix": counts([1, 0])}])
    assert hardest_family(rates).family == "variant"
    assert harmonic_mean([1, 0.75, 0.6]) == pytest.approx(0.75)
    assert overall_score(rates, near=0.6, rest=1.0) == pytest.approx(4 / (1 + 4 / 3 + 1 / 0.6 + 1))
    assert overall_score(rates, near=0.0, rest=1.0) == 0
    with pytest.raises(ValueError, match="None of the families"):
        overall_score(family_rates([{"name": counts([0])}]), near=1.0, rest=1.0)


def test_only_prompts_that_most_images_of_the_base_show_pass() -> None:
    gated = counts([1, 5, 4], base=[3, 2, 5])
    rates = family_rates([{"name": counts([0, 1]), "free": gated}])
    assert gated.passed.tolist() == [True, False, True]
    assert (rates["free"].prompts, rates["free"].dropped) == (3, 1)
    assert rates["free"].passed is not None
    assert rates["free"].passed.value == 0.5
    assert rates["free"].passed_gap is not None
    assert rates["free"].passed_gap.value == pytest.approx(0.4)
    none = family_rates([{"name": counts([0]), "free": counts([5], base=[0])}])["free"]
    assert none.passed is none.passed_gap is None
    assert (none.shown.value, none.dropped) == (1.0, 1)


def test_a_model_against_itself_changes_nothing() -> None:
    same = {"name": counts([4, 5], [4, 5]), "variant": counts([5, 3, 4, 5], [5, 3, 4, 5])}
    rates = family_rates([same, same])
    assert all(rate.change == (0.0, 0.0, 0.0) for rate in rates.values())
    assert rates["variant"].gap is not None
    assert rates["variant"].gap.value == pytest.approx(rates["name"].ua - rates["variant"].ua)


def test_runs_are_pooled_whatever_their_order() -> None:
    other = {"name": counts([1, 1]), "variant": counts([0, 0, 1, 0]), "composition": counts([5, 5])}
    one, two = family_rates([BY_HAND, other]), family_rates([other, BY_HAND])
    assert one["variant"].shown.value == 6 / 40
    assert one["variant"].gap is not None
    assert one["variant"].gap.value == pytest.approx(0.25 / 2 - 0.15 / 2)
    assert {f: (r.shown, r.base, r.rest, r.dropped) for f, r in one.items()} == {
        f: (r.shown, r.base, r.rest, r.dropped) for f, r in two.items()
    }
    assert one["composition"].prompts == 2


def test_counts_go_through_json() -> None:
    record = json.loads(json.dumps(BY_HAND["variant"].to_dict()))
    assert FamilyCounts.from_dict(record) == BY_HAND["variant"]


def test_errors_of_counts() -> None:
    with pytest.raises(ValueError, match="three counts of at most 5"):
        FamilyCounts((6,), (5,), (5,), 5)
    with pytest.raises(ValueError, match="three counts"):
        FamilyCounts((1, 2), (5,), (5, 5), 5)
    with pytest.raises(ValueError, match="no family 'name'"):
        family_rates([{"variant": counts([0])}])
    with pytest.raises(ValueError, match=r"near must be in \[0, 1\], but got 60"):
        overall_score(family_rates([BY_HAND]), near=60, rest=1.0)


def test_the_bootstrap_draws_runs_and_prompts_within() -> None:
    """Against the variance of a two-stage sample, worked out by hand."""
    torch.manual_seed(0)
    runs = [[torch.randn(40) + shift, torch.randn(30)] for shift in (0.0, 1.0, 2.0, 5.0)]
    means = torch.stack([a.mean() - b.mean() for a, b in runs]).double()
    within = torch.stack([a.var(unbiased=False) / len(a) + b.var(unbiased=False) / len(b) for a, b in runs])
    deviation = ((means.var(unbiased=False) + within.double().mean()) / len(runs)).sqrt()
    found = nested_bootstrap(runs, draws=20_000)
    assert found.value == pytest.approx(float(means.mean()), abs=1e-6)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(float(deviation), rel=0.05)
    one = nested_bootstrap([runs[0][:1]], draws=20_000)
    deviation = runs[0][0].std(unbiased=False) / 40**0.5
    assert (one.high - one.low) / (2 * 1.96) == pytest.approx(float(deviation), rel=0.05)


def test_the_bootstrap_refuses_what_has_no_mean() -> None:
    with pytest.raises(ValueError, match="number of runs must be at least 1"):
        nested_bootstrap([])
    with pytest.raises(ValueError, match=r"each two, but got \[1, 2\]"):
        nested_bootstrap([[torch.ones(1)], [torch.ones(1), torch.ones(1)]])
    with pytest.raises(ValueError, match="values are empty"):
        nested_bootstrap([[torch.ones(0)]])
