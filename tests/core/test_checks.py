"""Each check passes what is right, and names the argument, the value and the remedy otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_unlearn import WAGLE, GradDiff, SimNPO, classifier_nll, training_step_loss
from lightning_unlearn.core.checks import (
    above,
    at_least,
    between,
    finite,
    function,
    one_of,
    regex,
    strategy,
    trainer_optimizes,
)
from tests.user_module import LitNet

NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (lambda: at_least("steps", 1, 1), 1),
        (lambda: above("beta", 0.1, 0), 0.1),
        (lambda: between("density", 0.0, 0, 1), 0.0),
        (lambda: between("density", 1.0, 0, 1), 1.0),
        (lambda: one_of("norm", "l2", ("linf", "l2")), "l2"),
        (lambda: one_of("norm", "l2", Literal["linf", "l2"]), "l2"),
        (lambda: one_of("bins", None, (None, 3)), None),
        (lambda: regex("layer", r"layers\.1$"), r"layers\.1$"),
        (lambda: function("score", len, "(module, batch) -> NLL"), len),
        (lambda: finite("scores", torch.zeros(2)), None),
        (lambda: trainer_optimizes("NPO", LitNet()), None),
    ],
)
def test_what_is_right_is_given_back(check: Callable[[], Any], value: Any) -> None:
    assert check() == value


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: at_least("steps", 0, 1), ValueError, "steps must be at least 1, but got 0."),
        (lambda: at_least("steps", NAN, 1), ValueError, "steps must be at least 1, but got nan."),
        (lambda: at_least("rows", 0, 1, "or None"), ValueError, "rows must be at least 1, but got 0: or None."),
        (lambda: above("beta", 0, 0), ValueError, "beta must be greater than 0, but got 0."),
        (lambda: above("beta", NAN, 0), ValueError, "beta must be greater than 0, but got nan."),
        (lambda: above("lr", -1.0, 0, "a step."), ValueError, "lr must be greater than 0, but got -1.0: a step."),
        (lambda: between("density", 1.5, 0, 1), ValueError, "density must be in [0, 1], but got 1.5."),
        (lambda: between("density", NAN, 0, 1, "half"), ValueError, "density must be in [0, 1], but got nan: half."),
        (lambda: one_of("norm", "l3", ("linf", "l2")), ValueError, "norm must be 'linf' or 'l2', but got 'l3'."),
        (lambda: one_of("norm", 3, Literal["a", "b", "c"]), ValueError, "norm must be 'a', 'b' or 'c', but got 3."),
        (lambda: one_of("norm", "x", ["a"], "more"), ValueError, "norm must be 'a', but got 'x': more."),
        (lambda: regex("layer", "("), ValueError, "layer='(' is not a regular expression: "),
        (lambda: function("score", 3, "(x) -> y"), TypeError, "score must be a function (x) -> y, but got 3."),
        (lambda: finite("scores", torch.empty(0)), ValueError, "scores are empty: a metric of an empty set"),
        (lambda: finite("scores", torch.tensor([1, NAN, NAN])), ValueError, "2 of 3 scores are NaN or infinite."),
        (lambda: finite("scores", torch.tensor([torch.inf])), ValueError, "1 of 1 scores are NaN or infinite."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(check: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        check()


def run_with(kind: type) -> Any:
    return SimpleNamespace(strategy=object.__new__(kind))


@pytest.mark.parametrize("kind", [SingleDeviceStrategy, DDPStrategy])
@pytest.mark.parametrize("sharded", [True, False])
def test_one_device_and_ddp_are_always_supported(kind: type, sharded: bool) -> None:
    strategy("NPO", run_with(kind), sharded=sharded)


def test_sharded_weights_are_supported_or_refused_with_the_reason() -> None:
    run = run_with(ModelParallelStrategy)
    strategy("NPO", run)
    for reason, said in (("", "needs whole weights"), ("reads whole gradients", "reads whole gradients")):
        message = f"^SSD {said}, which ModelParallelStrategy shards. Use one device or strategy='ddp'.$"
        with pytest.raises(MisconfigurationException, match=message):
            strategy("SSD", run, sharded=False, reason=reason)


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, FSDPStrategy])
def test_other_strategies_are_refused_with_those_that_are_supported(kind: type) -> None:
    with pytest.raises(MisconfigurationException, match=rf"^NPO does not support {kind.__name__}.*\(FSDP2\)"):
        strategy("NPO", run_with(kind))
    with pytest.raises(MisconfigurationException, match=rf"{kind.__name__}.* Use strategy='ddp'\.$"):
        strategy("SSD", run_with(kind), sharded=False)


def test_manual_optimization_is_refused() -> None:
    module = LitNet()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match=r"^NPO needs the Trainer .* LitNet optimizes man"):
        trainer_optimizes("NPO", module)


@pytest.mark.parametrize("make", [SimNPO, GradDiff, partial(WAGLE, 0.5)])
@pytest.mark.parametrize("score", [classifier_nll, training_step_loss])
def test_a_partial_that_hides_what_a_score_gives_is_refused(make: Callable[..., Any], score: Any) -> None:
    with pytest.raises(TypeError, match=rf"Pass {score.__name__}\. In a Hydra configuration.*get_object"):
        make(score=partial(score))
