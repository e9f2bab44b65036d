"""The claims of the Markov chain experiment hold on every seed, trained through the library."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def markov() -> Any:
    return example("markov")


@pytest.fixture(scope="module")
def markov_weights(markov: Any) -> Any:
    return example("markov_weights")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_collapse_follows_beta(markov: Any, seed: int) -> None:
    names = ["GA", "NPO 0.1", "NPO 0.2", "NPO 1"]
    found = markov.run(1, seed, names)
    broken = [found[name][-1]["retain"] for name in names]
    assert broken == sorted(broken, reverse=True)
    assert broken[0] > 3 * broken[-1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_simnpo_leaves_alone_what_was_never_learned(markov: Any, seed: int) -> None:
    found = markov.run(2, seed, ["NPO 1", "SimNPO 7"])
    before, npo, simnpo = found["NPO 1"][0], found["NPO 1"][-1], found["SimNPO 7"][-1]
    assert npo["forget2"] > 3 * before["forget2"]
    assert simnpo["forget2"] < 1.5 * before["forget2"]
    assert simnpo["retain"] <= before["retain"] + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_simnpos_beta_has_an_optimum(markov: Any, seed: int) -> None:
    found = markov.run(1, seed, ["SimNPO 4", "SimNPO 7", "SimNPO 10"])
    before, (small, best, large) = found["SimNPO 7"][0], (points[-1] for points in found.values())
    assert best["retain"] < before["retain"] < small["retain"]
    for chain in ("forget1", "forget2"):
        assert best[chain] < min(before[chain], large[chain])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_few_weights_wagle_finds_those_that_matter(markov_weights: Any, seed: int) -> None:
    found = markov_weights.run(seed, ["random 0.1", "magnitude 0.1", "WAGLE 0.1", "WAGLE 0.9", "dense"])
    for other in ("random 0.1", "magnitude 0.1"):
        assert found["WAGLE 0.1"]["forget"] < 0.6 * found[other]["forget"]
        assert found["WAGLE 0.1"]["retain"] < found[other]["retain"] + 0.01
    assert found["WAGLE 0.9"]["forget"] == pytest.approx(found["dense"]["forget"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_soul_as_released_breaks_less_at_an_aggressive_rate(markov_weights: Any, seed: int) -> None:
    found = markov_weights.run(seed, ["AdamW 0.001", "SOUL, released 0.001"])
    for chain in ("retain", "forget"):
        assert found["SOUL, released 0.001"][chain] < 0.7 * found["AdamW 0.001"][chain]
