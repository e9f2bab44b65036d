"""Checks of arguments, tensors and runs, one line each, with messages that name the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.lightning import (
    MODEL_PARALLEL,
    LightningModule,
    MisconfigurationException,
    Trainer,
    classes,
)

__all__ = [
    "above",
    "at_least",
    "between",
    "finite",
    "function",
    "inside",
    "one_of",
    "regex",
    "strategy",
    "tensor_parallel",
    "trainer_optimizes",
]

_WHOLE_WEIGHTS = classes("strategies.SingleDeviceStrategy", "strategies.DDPStrategy")
_DEEPSPEED = classes("strategies.DeepSpeedStrategy")  # a subclass of DDPStrategy

T = TypeVar("T")
Number = TypeVar("Number", int, float)


def at_least(name: str, value: Number, bound: float, hint: str = "") -> Number:
    """``value``, if it is at least ``bound``.

    Raises:
        ValueError: If it is less, or NaN.

    Example:
        >>> at_least("steps", 0, 1)
        Traceback (most recent call last):
        ValueError: steps must be at least 1, but got 0.
    """
    if not value >= bound:
        raise ValueError(f"{name} must be at least {bound}, but got {value}{_hint(hint)}")
    return value


def above(name: str, value: Number, bound: float, hint: str = "") -> Number:
    """``value``, if it is greater than ``bound``.

    Raises:
        ValueError: If it is not.
    """
    if not value > bound:
        raise ValueError(f"{name} must be greater than {bound}, but got {value}{_hint(hint)}")
    return value


def between(name: str, value: Number, low: float, high: float, hint: str = "") -> Number:
    """``value``, if it is in ``[low, high]``.

    Raises:
        ValueError: If it is outside.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], but got {value}{_hint(hint)}")
    return value


def inside(name: str, value: Number, low: float, high: float, hint: str = "") -> Number:
    """``value``, if it is in ``(low, high)``.

    Raises:
        ValueError: If it is outside, or a bound.
    """
    if not low < value < high:
        raise ValueError(f"{name} must be in ({low}, {high}), but got {value}{_hint(hint)}")
    return value


def one_of(name: str, value: T, choices: Any, hint: str = "") -> T:
    """``value``, if it is one of some choices.

    Args:
        name: Name of the argument.
        value: What was given.
        choices: A ``Literal`` type, or the choices themselves.
        hint: How to choose.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> one_of("norm", "l3", ("linf", "l2"))
        Traceback (most recent call last):
        ValueError: norm must be 'linf' or 'l2', but got 'l3'.
    """
    known: Iterable[Any] = get_args(choices) or choices
    known = list(known)
    if not any(value is choice or value == choice for choice in known):
        *first, last = map(repr, known)
        listed = f"{', '.join(first)} or {last}" if first else last
        raise ValueError(f"{name} must be {listed}, but got {value!r}{_hint(hint)}")
    return value


def regex(name: str, pattern: str) -> str:
    """``pattern``, if it is a regular expression.

    Raises:
        ValueError: If it is none.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}={pattern!r} is not a regular expression: {error}.") from None
    return pattern


def function(name: str, value: T, signature: str) -> T:
    """``value``, if it can be called.

    Raises:
        TypeError: If it can't.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function {signature}, but got {value!r}.")
    return value


def finite(name: str, values: Tensor) -> None:
    """Refuse NaN, infinity and empty tensors.

    Args:
        name: What the values are, for the message.
        values: Any shape, not empty.

    Raises:
        ValueError: If there are no values, or one is NaN or infinite.
    """
    if values.numel() == 0:
        raise ValueError(f"{name} are empty: a metric of an empty set is undefined. Leave this set out.")
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {values.numel()} {name} are NaN or infinite. Has the model diverged? Lower the learning rate, "
            "clip gradients, or stop earlier."
        )


def strategy(method: str, trainer: Trainer, sharded: bool = True, reason: str = "") -> None:
    """Refuse a strategy that a method can't work under.

    Args:
        method: Name of the method.
        trainer: Trainer of the run.
        sharded: Whether the method supports weights that are sharded by ``ModelParallelStrategy`` (FSDP2).
        reason: Why it does not, such as ``"reads whole gradients"``.

    Raises:
        MisconfigurationException: If the strategy is not supported.
    """
    kind = trainer.strategy
    plain = isinstance(kind, _WHOLE_WEIGHTS) and not isinstance(kind, _DEEPSPEED)
    if plain or (sharded and isinstance(kind, MODEL_PARALLEL)):
        return
    if isinstance(kind, MODEL_PARALLEL):
        raise MisconfigurationException(
            f"{method} {reason or 'needs whole weights'}, which ModelParallelStrategy shards. Use one device or "
            "strategy='ddp'."
        )
    ways = "strategy='ddp'"
    if sharded:
        ways += ", or ModelParallelStrategy(data_parallel_size=...) (FSDP2) for sharded weights"
    raise MisconfigurationException(
        f"{method} does not support {type(kind).__name__}, which takes parameters apart in its own way. Use {ways}."
    )


def tensor_parallel(module: LightningModule, mesh: DeviceMesh) -> None:
    """Refuse a tensor-parallel group of processes for a module that is not taken apart over it.

    Args:
        module: The module, as ``configure_model`` has made it.
        mesh: The mesh of ``ModelParallelStrategy``.

    Raises:
        MisconfigurationException: If each process of a group would have a model of its own.
    """
    size = mesh["tensor_parallel"].size()
    if size == 1 or any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        return
    raise MisconfigurationException(
        f"ModelParallelStrategy makes groups of {size} processes that share one model, but {type(module).__name__} is "
        "not taken apart: each process would train a model of its own. Use "
        "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1), or apply parallelize_module in "
        "configure_model."
    )


def trainer_optimizes(method: str, module: LightningModule) -> None:
    """Refuse manual optimization.

    Raises:
        MisconfigurationException: If the module optimizes manually.
    """
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{method} needs the Trainer to make the steps, but {type(module).__name__} optimizes manually. Set "
            "automatic_optimization = True, or pass a module that leaves the step to Lightning."
        )


def _hint(hint: str) -> str:
    return f": {hint.rstrip('.')}." if hint else "."
