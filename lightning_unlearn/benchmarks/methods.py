"""What the comparison on classifiers runs: tasks, and methods with the settings they are tuned over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["ABLATION", "ALPHAS", "METHODS", "TASKS", "WEIGHTS", "Method", "Task"]


class Task(NamedTuple):
    """Rows, a model, how it is trained, and what it is to forget.

    Args:
        rows: Import path of a labelled dataset that takes ``part`` and ``seed``.
        rows_args: Its other arguments.
        test_args: Arguments that differ for the test rows.
        model: Import path of the model.
        model_args: Its arguments.
        epochs: Epochs of training, with a learning rate that falls to 0 along a cosine.
        lr: Learning rate at the start.
        scenarios: Arguments of `ClassificationDataModule` by name of the scenario; ``coarse`` is an argument of
            `CoarseLabels`.
        without: Methods that can't run: those that move inputs need numbers, not token ids.
    """

    rows: str
    rows_args: dict[str, Any]
    test_args: dict[str, Any]
    model: str
    model_args: dict[str, Any]
    epochs: int
    lr: float
    scenarios: dict[str, dict[str, Any]]
    without: tuple[str, ...] = ()


_DATA, _MODELS = "lightning_unlearn.", "lightning_unlearn.benchmarks.models."
_PAIRS = [label // 2 for label in range(10)]
_DIGITS: dict[str, dict[str, Any]] = {
    "class": {"forget_class": 3},
    "random": {"forget_share": 0.1},
    "group": {"coarse": _PAIRS, "forget_group": 3},  # 2 and 3 are one class
}

TASKS: dict[str, Task] = {
    "mnist": Task(_DATA + "MNIST5k", {"pool": 2}, {}, _MODELS + "ResNet8", {}, 15, 0.1, _DIGITS),
    "digits": Task(_DATA + "Tabular", {"name": "digits"}, {}, _MODELS + "MLP", {}, 20, 0.05, _DIGITS),
    "images": Task(
        _DATA + "SyntheticImages",
        {"rows": 2000, "noise": 2.0, "size": 16, "shift": 2},
        {"rows": 500},
        _MODELS + "ResNet8",
        {"channels": 3},
        10,
        0.1,
        _DIGITS,
    ),
    "text": Task(
        _DATA + "SyntheticText",
        {"rows": 4000, "classes": 10, "vocabulary": 1000, "signal": 0.5},
        {"rows": 500},
        _MODELS + "TextTransformer",
        {"classes": 10, "vocabulary": 1000},
        15,
        0.1,
        _DIGITS,
        without=("BoundaryShrink", "UNSIR"),
    ),
}
"""MNIST's 5,000 images at 14 × 14, scikit-learn's digits, and procedural images and texts."""


class Method(NamedTuple):
    """A method and the settings it is tuned over.

    Args:
        name: Its name in the table.
        settings: Each a dict with ``lr``, ``epochs``, ``epoch``, the role that one passes over, and ``callbacks``, a
            list of ``{"class_path": ..., "init_args": ...}`` as in a YAML file.
        scenarios: Those it is made for; all if empty.
    """

    name: str
    settings: tuple[dict[str, Any], ...]
    scenarios: tuple[str, ...] = ()


def _callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning_unlearn.{name}", "init_args": arguments}


def _setting(epoch: str, lr: float, epochs: int, *callbacks: dict[str, Any]) -> dict[str, Any]:
    return {"lr": lr, "epochs": epochs, "epoch": epoch, "callbacks": list(callbacks)}


def _method(name: str, epoch: str, grid: Sequence[tuple[float, int, dict[str, Any]]], *beside: Any) -> Method:
    """A method over ``(lr, epochs, arguments)``, with the same callbacks beside it."""
    return Method(name, tuple(_setting(epoch, lr, n, _callback(name, **a), *beside) for lr, n, a in grid))


def _edit(name: str, *grid: dict[str, Any]) -> Method:
    """A method that changes the weights once; the learning rate is not used."""
    return Method(name, tuple(_setting("retain", 1e-3, 1, _callback(name, **arguments)) for arguments in grid))


_SCORE = {"score": "lightning_unlearn.classifier_nll"}
_Grid = list[tuple[float, int, dict[str, Any]]]
_RATES: _Grid = [(lr, n, {}) for n in (3, 5) for lr in (1e-2, 3e-2, 1e-1)]
_RELABEL: _Grid = [(lr, n, {}) for n in (3, 5) for lr in (3e-3, 1e-2, 3e-2)]
# The class is that of the scenario.
_UNSIR = tuple(
    _setting("retain", lr, n, _callback("UNSIR", forget_class=0)) for n in (2, 4) for lr in (1e-3, 1e-2, 3e-2)
)

METHODS: tuple[Method, ...] = (
    _method("FineTune", "retain", _RATES),
    _method("L1Sparse", "retain", [(lr, 5, {"gamma": g}) for lr in (1e-2, 3e-2) for g in (1e-4, 5e-4, 2e-3)]),
    # A class is gone at rates a hundred times smaller than random rows, which the model is as sure of as of the others.
    _method("GradientAscent", "forget", [(lr, n, _SCORE) for n in (1, 3) for lr in (3e-5, 3e-4, 1e-2)]),
    _method("NegGradPlus", "retain", [(1e-2, n, {"p": p}) for n in (3, 5) for p in (0.95, 0.98, 0.99)]),
    _method("RandomLabels", "retain", _RELABEL),
    Method(
        "SalUn",
        tuple(
            _setting("retain", lr, 5, _callback("RandomLabels"), _callback("SalUn", density=density))
            for density in (0.5, 0.2)
            for lr in (3e-3, 1e-2, 3e-2)
        ),
    ),
    _method("BadTeacher", "retain", _RELABEL),
    _method(
        "SCRUB", "retain", [(lr, 5, {"alpha": a, "max_passes": 3}) for a in (0.5, 0.1) for lr in (5e-4, 2e-3, 1e-2)]
    ),
    _method(
        "BoundaryShrink",
        "forget",
        [(lr, 10, {"epsilon": e, "clip": None}) for e in (0.1, 0.3) for lr in (1e-4, 5e-4, 2e-3)],
    ),
    _method("BoundaryExpand", "forget", [(lr, n, {}) for n in (5, 10) for lr in (1e-4, 5e-4, 1e-3)]),
    Method("UNSIR", _UNSIR, scenarios=("class",)),
    _method("DUCK", "retain", [(lr, 3, {"lambda1": w}) for w in (1.0, 0.1) for lr in (1e-3, 3e-3, 1e-2)]),
    _method("CFk", "retain", [(lr, 5, {"k": k}) for k in (1, 2) for lr in (1e-2, 3e-2, 1e-1)]),
    _method("EUk", "retain", [(lr, 10, {"k": k}) for k in (1, 2) for lr in (1e-2, 3e-2, 1e-1)]),
    _edit("FisherForgetting", *({"alpha": alpha} for alpha in (1e-9, 1e-8, 3e-8, 1e-7, 3e-7, 1e-6))),
    _edit("SSD", *({"alpha": alpha, "dampening": d} for d in (1.0, 0.1) for alpha in (1.0, 3.0, 10.0))),
    _edit(
        "InfluenceUnlearning",
        *({**_SCORE, "damping": d, "step_size": a} for d in (1e-1, 1.0) for a in (0.1, 1.0, 10.0)),
    ),
    Method(
        "UGradSL",
        tuple(
            _setting("forget", lr, n, _callback("UGradSL", alpha=alpha, p=p))
            for lr, n, alpha, p in (
                (1e-3, 3, -1.0, 0.5),
                (1e-2, 5, -0.5, 0.9),
                (1e-2, 5, -0.5, 0.95),
                (1e-2, 5, -1.0, 0.95),
                (2e-2, 5, -1.0, 0.95),
                (2e-2, 5, -1.0, 0.98),
            )
        ),
    ),
    Method(
        "UGradSLPlus",
        tuple(
            _setting("retain", lr, n, _callback("UGradSLPlus", alpha=alpha, p=p))
            for lr, n, alpha, p in (
                (1e-2, 3, -0.2, 0.98),
                (1e-2, 5, -0.2, 0.98),
                (1e-2, 5, -0.2, 0.99),
                (1e-2, 3, -0.5, 0.95),
                (1e-2, 5, -0.5, 0.98),
                (1e-2, 5, -1.0, 0.98),
            )
        ),
    ),
)
"""The methods, each with as many settings: published constants, and rates around what moves a small net."""


ALPHAS = (0.0, -0.2, -0.5, -1.0, -2.0)
WEIGHTS = (0.5, 0.8, 0.9, 0.98)
ABLATION: dict[str, tuple[dict[str, Any], ...]] = {
    name: tuple(_setting(epoch, lr, 3, _callback(name, alpha=alpha, p=p)) for p in WEIGHTS for alpha in ALPHAS)
    for name, epoch, lr in (("UGradSL", "forget", 3e-3), ("UGradSLPlus", "retain", 1e-2))
}
"""UGradSL and UGradSL+ over the rate of smoothing and the weight of the retain rows, all else fixed."""
