"""Parts that the runs of all benchmarks share."""

from __future__ import annotations

import warnings

import pytest

from lightning_unlearn.benchmarks.runs import build, describe, quiet_libraries, takes, trainer
from lightning_unlearn.core.scores import classifier_nll


def test_a_callback_is_built_by_its_constructor_with_what_its_description_leaves_open() -> None:
    score = "lightning_unlearn.classifier_nll"
    descriptions = [
        describe("RandomMask", density=0.1),
        describe("RandomMask", density=0.1, seed=7),
        describe("FineTune"),
        describe("GradientAscent", score=score),
    ]
    drawn, fixed, plain, ascent = build(descriptions, seed=3)
    assert (drawn.seed, fixed.seed) == (3, 7)
    assert not hasattr(plain, "seed")
    assert ascent.score is classifier_nll
    assert takes(descriptions[0], "seed")
    assert not takes(descriptions[2], "seed")
    with pytest.raises(ValueError, match="density"):
        build([describe("RandomMask", density=2.0)])


def test_known_noise_is_left_out_and_other_warnings_are_not() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        quiet_libraries()
        for message in ("FID of 25 real and 25 generated images is biased: ...", "a loss of precision"):
            warnings.warn(message, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["a loss of precision"]


def test_the_trainer_takes_options() -> None:
    assert trainer(max_steps=3, gradient_clip_val=1.0).max_steps == 3
