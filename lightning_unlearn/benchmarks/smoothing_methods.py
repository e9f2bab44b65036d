"""Objectives and strategies of the comparison of smoothing, with the settings each is tuned over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lightning_unlearn.benchmarks.entries import Setting
from lightning_unlearn.benchmarks.methods import Recipe
from lightning_unlearn.benchmarks.runs import Description, describe

__all__ = ["CLASSIFIERS", "NONE", "OBJECTIVES", "STRATEGIES", "SWEEP", "Plan", "settings", "swept"]

NONE = "none"
"""The objective without smoothing."""

CLASSIFIERS = {
    "digits": Recipe(describe("Tabular", name="digits"), describe("benchmarks.models.MLP"), 30, 0.05),
    "mnist": Recipe(describe("MNIST5k", pool=2), describe("benchmarks.models.ConvNet"), 15, 0.05),
}
"""Data sets with nets without batch normalization, whose statistics would forget, and relearn, by themselves."""

SWEEP = (1e-3, 1e-2, 1e-1, 1.0)
"""Radii of SAM in the sweep, beside 0, which is the objective without it."""


@dataclass(frozen=True)
class Plan:
    """A strategy: factors of the objective's learning rate and the callback, one pair a setting."""

    name: str
    settings: tuple[tuple[float, Description | None], ...]


def _plan(name: str, *arguments: dict[str, Any], callback: str = "") -> Plan:
    return Plan(name, tuple((1.0, describe(callback or name, **given)) for given in arguments))


def _common(*averages: dict[str, Any]) -> tuple[Plan, ...]:
    """What both tasks compare. The constants of the publication come first, the others are around them."""
    rates = (1.0, 0.5, 2.0)
    return (
        Plan(NONE, tuple((rate, None) for rate in rates)),
        _plan("SAM", {"rho": 0.01}, {"rho": 0.1}, {"rho": 0.3}),
        _plan("RS", {"sigma": 1e-4}, {"sigma": 1e-3}, {"sigma": 1e-2}, callback="RandomizedSmoothing"),
        _plan("GP", {"coef": 0.01}, {"coef": 0.1}, {"coef": 1.0}, callback="GradientPenalty"),
        _plan("CR", {"coef": 10.0}, {"coef": 1.0}, {"coef": 100.0}, callback="CurvatureRegularization"),
        _plan("WA", *averages, callback="UnlearnWeightAveraging"),
        Plan("QA", tuple((rate, describe("QuantizationAware", scheme="int4")) for rate in rates)),
    )


def _average(start_step: int, every_n_steps: int) -> dict[str, Any]:
    return {"start_step": start_step, "every_n_steps": every_n_steps}


# The published average begins after 100 of 125 updates. Here the level of forgetting ends a run, after fewer: about 75
# of a classifier.
STRATEGIES: dict[str, tuple[Plan, ...]] = {
    "classifier": _common(_average(60, 5), _average(40, 5), _average(20, 5)),
    "language": _common(_average(5, 1), _average(2, 1), _average(5, 2)),
}

_SCORE = "lightning_unlearn.classifier_nll"
# SimNPO fades below the level of forgetting unless beta is small; published is 2.5, for answers of many tokens.
OBJECTIVES: dict[str, dict[str, tuple[float, Description]]] = {
    "classifier": {
        "GradDiff": (1e-3, describe("GradDiff", score=_SCORE)),
        "NPO": (1e-3, describe("NPO", score=_SCORE)),
        "SimNPO": (1e-3, describe("SimNPO", beta=0.5, score=_SCORE)),
    },
    "language": {
        "GradDiff": (5e-6, describe("GradDiff")),
        "NPO": (1e-5, describe("NPO")),
        "SimNPO": (1e-5, describe("SimNPO", beta=1.0)),
    },
}


def settings(kind: str, objective: str, plan: Plan, tried: int) -> tuple[Setting, ...]:
    """The first settings of a strategy beside an objective."""
    lr, callback = OBJECTIVES[kind][objective]
    return tuple(
        Setting(factor * lr, (callback,) if beside is None else (callback, beside))
        for factor, beside in plan.settings[:tried]
    )


def swept(setting: Setting, rho: float) -> Setting:
    """The setting of an objective alone, with SAM of a radius."""
    return replace(setting, callbacks=(*setting.callbacks[:1], describe("SAM", rho=rho))) if rho else setting
