"""Tasks and methods of the comparison on classifiers, with the settings that are tried for each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from lightning_unlearn.benchmarks.runs import Description, describe

__all__ = [
    "ABLATION",
    "ALPHAS",
    "METHODS",
    "SCENARIOS",
    "TASKS",
    "UNTUNED",
    "WEIGHTS",
    "WITHOUT",
    "Method",
    "Recipe",
    "Scenario",
    "Setting",
    "methods_of",
]


@dataclass(frozen=True)
class Recipe:
    """A dataset with the arguments ``part`` and ``seed``, a model, its training, and options of the test rows."""

    rows: Description
    model: Description
    epochs: int
    lr: float
    test_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """What is forgotten: a class, a group, a share of the rows, or nothing; ``coarse`` maps each label to its group."""

    forget_class: int | None = None
    forget_group: int | None = None
    forget_share: float | None = None
    coarse: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Setting:
    """The role whose rows an epoch passes over, the learning rate, the epochs, the callbacks, and the clipping."""

    epoch: str
    lr: float
    epochs: int
    callbacks: tuple[Description, ...]
    clip: float | None = 10.0


@dataclass(frozen=True)
class Method:
    """A method, the settings that are tried for it, and the scenarios that it supports."""

    name: str
    settings: tuple[Setting, ...]
    scenarios: tuple[str, ...] = ("class", "random", "group")


SCENARIOS = {
    "class": Scenario(forget_class=3),
    "random": Scenario(forget_share=0.1),
    "group": Scenario(forget_group=3, coarse=tuple(label // 2 for label in range(10))),  # 2 and 3 are one class
}

_IMAGES = describe("SyntheticImages", rows=2000, noise=2.0, size=16, shift=2)
_TEXT = describe("SyntheticText", rows=4000, classes=10, vocabulary=1000, signal=0.5)
_TRANSFORMER = describe("benchmarks.models.TextTransformer", classes=10, vocabulary=1000)
TASKS = {
    "mnist": Recipe(describe("MNIST5k", pool=2), describe("benchmarks.models.ResNet8"), 15, 0.1),
    "mnist1d": Recipe(describe("MNIST1D"), describe("benchmarks.models.ConvNet1D"), 30, 0.05),
    "digits": Recipe(describe("Tabular", name="digits"), describe("benchmarks.models.MLP"), 20, 0.05),
    "images": Recipe(_IMAGES, describe("benchmarks.models.ResNet8", channels=3), 10, 0.1, {"rows": 500}),
    "text": Recipe(_TEXT, _TRANSFORMER, 15, 0.1, {"rows": 500}),
}
"""MNIST's 5,000 images at 14 × 14, MNIST-1D, scikit-learn's digits, and procedural images and texts."""

WITHOUT = {"text": ("BoundaryShrink", "UNSIR")}
"""Methods that a task excludes: those that move inputs need numbers, not token ids."""


def _settings(name: str, epoch: str, /, *beside: Description, **grid: Any) -> tuple[Setting, ...]:
    """Settings of a method for all combinations of the arguments that are lists, of which the last varies fastest."""
    settings = []
    for values in product(*(value if isinstance(value, list) else [value] for value in grid.values())):
        arguments = {"lr": 1e-3, "epochs": 1, **dict(zip(grid, values, strict=True))}
        lr, epochs = arguments.pop("lr"), arguments.pop("epochs")
        settings.append(Setting(epoch, lr, epochs, (*beside, describe(name, **arguments))))
    return tuple(settings)


def _method(name: str, epoch: str, *beside: Description, **grid: Any) -> Method:
    return Method(name, _settings(name, epoch, *beside, **grid))


_SCORE = "lightning_unlearn.classifier_nll"

METHODS = (
    _method("FineTune", "retain", epochs=[3, 5], lr=[1e-2, 3e-2, 1e-1]),
    _method("L1Sparse", "retain", lr=[1e-2, 3e-2], epochs=5, gamma=[1e-4, 5e-4, 2e-3]),
    # A class is gone at rates a hundred times smaller than random rows, which the model is as sure of as of the others.
    _method("GradientAscent", "forget", epochs=[1, 3], lr=[3e-5, 3e-4, 1e-2], score=_SCORE),
    _method("NegGradPlus", "retain", lr=1e-2, epochs=[3, 5], p=[0.95, 0.98, 0.99]),
    _method("RandomLabels", "retain", epochs=[3, 5], lr=[3e-3, 1e-2, 3e-2]),
    _method("SalUn", "retain", describe("RandomLabels"), density=[0.5, 0.2], lr=[3e-3, 1e-2, 3e-2], epochs=5),
    _method("BadTeacher", "retain", epochs=[3, 5], lr=[3e-3, 1e-2, 3e-2]),
    _method("SCRUB", "retain", alpha=[0.5, 0.1], lr=[5e-4, 2e-3, 1e-2], epochs=5, max_passes=3),
    _method("BoundaryShrink", "forget", epsilon=[0.1, 0.3], lr=[1e-4, 5e-4, 2e-3], epochs=10, clip=None),
    _method("BoundaryExpand", "forget", epochs=[5, 10], lr=[1e-4, 5e-4, 1e-3]),
    Method("UNSIR", _settings("UNSIR", "retain", epochs=[2, 4], lr=[1e-3, 1e-2, 3e-2]), scenarios=("class",)),
    _method("DUCK", "retain", lambda1=[1.0, 0.1], lr=[1e-3, 3e-3, 1e-2], epochs=3),
    _method("CFk", "retain", k=[1, 2], lr=[1e-2, 3e-2, 1e-1], epochs=5),
    _method("EUk", "retain", k=[1, 2], lr=[1e-2, 3e-2, 1e-1], epochs=10),
    # Methods that change the weights once, without a learning rate.
    _method("FisherForgetting", "retain", alpha=[1e-9, 1e-8, 3e-8, 1e-7, 3e-7, 1e-6]),
    _method("SSD", "retain", dampening=[1.0, 0.1], alpha=[10.0, 30.0, 100.0]),
    _method("InfluenceUnlearning", "retain", score=_SCORE, damping=[1e-1, 1.0], step_size=[0.1, 1.0, 10.0]),
    Method(
        "UGradSL",
        _settings("UGradSL", "forget", lr=1e-3, epochs=3, alpha=-1.0, p=0.5)
        + _settings("UGradSL", "forget", lr=1e-2, epochs=5, alpha=-0.5, p=[0.9, 0.95])
        + _settings("UGradSL", "forget", lr=[1e-2, 2e-2], epochs=5, alpha=-1.0, p=0.95)
        + _settings("UGradSL", "forget", lr=2e-2, epochs=5, alpha=-1.0, p=0.98),
    ),
    Method(
        "UGradSLPlus",
        _settings("UGradSLPlus", "retain", lr=1e-2, epochs=[3, 5], alpha=-0.2, p=0.98)
        + _settings("UGradSLPlus", "retain", lr=1e-2, epochs=5, alpha=-0.2, p=0.99)
        + _settings("UGradSLPlus", "retain", lr=1e-2, epochs=3, alpha=-0.5, p=0.95)
        + _settings("UGradSLPlus", "retain", lr=1e-2, epochs=5, alpha=[-0.5, -1.0], p=0.98),
    ),
)
"""The methods, each with as many settings: published constants, and rates around what moves a small net."""

# Of 200 forget rows in batches of 64, five epochs of UGradSL read 2,280 rows and twelve of ascent 2,400.
_RATES = [3e-3, 1e-2, 3e-2]
_INSTEAD = {
    "mnist1d": (
        _method("GradientAscent", "forget", epochs=12, lr=[3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2], score=_SCORE),
        Method(
            "UGradSL",
            _settings("UGradSL", "forget", lr=_RATES, epochs=5, alpha=-0.5, p=0.9)
            + _settings("UGradSL", "forget", lr=_RATES, epochs=5, alpha=-1.0, p=0.95),
        ),
        Method("UGradSL, alpha=0", _settings("UGradSL", "forget", lr=_RATES, epochs=5, alpha=0.0, p=[0.9, 0.95])),
    )
}
"""Methods of a task, in place of those of the same name: ascent and UGradSL at an equal cost, also unsmoothed."""


def methods_of(task: str) -> dict[str, Method]:
    """The methods that a task compares, by name."""
    methods = {m.name: m for m in METHODS if m.name not in WITHOUT.get(task, ())}
    return methods | {m.name: m for m in _INSTEAD.get(task, ())}


def _untuned(name: str, epoch: str, lr: float, **arguments: Any) -> Setting:
    return Setting(epoch, lr, 5, (describe(name, **arguments),), clip=None)


UNTUNED = {
    "mnist1d": {
        "GradientAscent": _untuned("GradientAscent", "forget", 0.05, score=_SCORE),
        "UGradSL": _untuned("UGradSL", "forget", 0.05),
        "UGradSLPlus": _untuned("UGradSLPlus", "retain", 0.05),
        "NegGradPlus": _untuned("NegGradPlus", "retain", 0.05),
        "RandomLabels": _untuned("RandomLabels", "retain", 0.05),
        "SCRUB": _untuned("SCRUB", "retain", 0.05),
    }
}
"""Methods with their defaults for five epochs, at the rate that the module was trained with, without clipping."""

ALPHAS = [0.0, -0.2, -0.5, -1.0, -2.0]
WEIGHTS = [0.5, 0.8, 0.9, 0.98]
ABLATION = {
    "UGradSL": _settings("UGradSL", "forget", lr=3e-3, epochs=3, p=WEIGHTS, alpha=ALPHAS),
    "UGradSLPlus": _settings("UGradSLPlus", "retain", lr=1e-2, epochs=3, p=WEIGHTS, alpha=ALPHAS),
}
"""UGradSL and UGradSL+ over the rate of smoothing and the weight of the retain rows, all else fixed."""
