"""Fields of the dataclasses of a report: checks of their values, and their reading from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

__all__ = ["built", "lists", "named", "number", "numbers", "unique"]

T = TypeVar("T")


def built(cls: type[T], record: Any, where: str) -> T:
    """An instance of a dataclass from the JSON object that describes it, its nested ones included.

    Raises:
        ValueError: If a key is missing or unknown, or a value is wrong; it says where.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} must be an object, but got {record!r}.")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    needed = {name for name, f in known.items() if f.default is f.default_factory and f.init}
    missing, unknown = sorted(needed - record.keys()), sorted(record.keys() - known.keys())
    if missing or unknown:
        raise ValueError(f"{where} is not of this schema: missing keys {missing}, unknown keys {unknown}.")
    values = {name: _value(known[name], value, f"{where}.{name}") for name, value in record.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def _value(of: Any, value: Any, where: str) -> Any:
    """A value of a field, with the nested objects built and its JSON type checked."""
    one, many = of.metadata.get("one"), of.metadata.get("many")
    kinds: dict[str, tuple[type[Any], str]] = {
        "str": (str, "a string"),
        "list": (list, "a list"),
        "Sequence": (list, "a list"),
        "dict": (dict, "an object"),
    }
    kind, name = kinds.get(str(of.type).partition("[")[0], (object, ""))
    fits = isinstance(value, kind) or (value is None and "None" in str(of.type))
    if not fits:
        raise ValueError(f"{where} must be {name}, but got {value!r}.")
    if one is not None and value is not None:
        return built(one, value, where)
    if many is not None:
        return [built(many, item, f"{where}[{place}]") for place, item in enumerate(value)]
    if (read := of.metadata.get("read")) is not None:
        return [read(item, f"{where}[{place}]") for place, item in enumerate(value)]
    return value


def number(name: str, value: Any) -> float | None:
    """A finite number, or ``None``; also of a tensor or an array with one element."""
    if value is None:
        return None
    if isinstance(value, (bool, str)):
        raise ValueError(f"{name} must be a number, but got {value!r}.")
    value = float(value)
    return value if math.isfinite(value) else None


def numbers(instance: Any, *names: str) -> None:
    """Make finite numbers of some fields."""
    for name in names:
        object.__setattr__(instance, name, number(name, getattr(instance, name)))


def lists(instance: Any, *names: str) -> None:
    """Make lists of some fields."""
    for name in names:
        object.__setattr__(instance, name, list(getattr(instance, name)))


def named(instance: Any) -> None:
    """Check that there is a name."""
    if not instance.name:
        raise ValueError(f"A {type(instance).__name__.lower()} needs a name.")


def unique(owner: str, names: Sequence[str]) -> None:
    """Check that no name occurs twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{owner} has {twice} more than once. Tell them apart by name or variant.")
