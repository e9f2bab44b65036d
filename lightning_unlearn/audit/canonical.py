"""Canonical JSON: one sequence of bytes for one record (RFC 8785 by restriction)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["canonical", "parsed", "rebuilt", "writable"]

T = TypeVar("T")

_LARGEST = 2**53


def canonical(value: Any) -> bytes:
    """The canonical bytes of a value: UTF-8, no spaces, keys sorted.

    Values are restricted so that Python writes what RFC 8785 asks for: strings, booleans, ``None``, integers below
    :math:`2^{53}` in size, lists, and dictionaries with ASCII keys. Measured numbers are decimal strings, see
    `writable`.

    Args:
        value: What to write.

    Raises:
        ValueError: If there is anything else in it; the message says where.

    Example:
        >>> canonical({"b": 2, "a": [True, "é"]}).decode()
        '{"a":[true,"é"],"b":2}'
    """
    _check(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parsed(text: str | bytes) -> Any:
    """The value that canonical bytes are of.

    Args:
        text: One JSON value.

    Raises:
        ValueError: If it is no JSON, or has what canonical JSON can't have: a repeated key, or a number that is no
            integer below :math:`2^{53}` in size.

    Example:
        >>> parsed('{"a":1,"a":2}')
        Traceback (most recent call last):
        ValueError: The key 'a' is there twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_float=_refused, parse_constant=_refused)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"This is no JSON: {error}.") from None
    except RecursionError:
        raise ValueError("This JSON is nested too deeply.") from None
    _check(value, "")
    return value


def writable(value: Any) -> Any:
    """A value with measured numbers as decimal strings, and dataclasses as dictionaries, for `canonical`.

    Args:
        value: Dataclasses, mappings, sequences, strings, numbers, ``None``.

    Raises:
        ValueError: If a number is NaN or infinite.
        TypeError: If there is anything else in it.

    Example:
        >>> writable({"auc": 0.25, "n": 40})
        {'auc': '0.25', 'n': 40}
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"A record has no place for {value}. Leave out what could not be measured, or write None.")
        return repr(float(value))  # float(): a subclass, as NumPy's, has another repr
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: writable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): writable(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [writable(part) for part in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return writable(value.item())
    if hasattr(value, "tolist"):
        return writable(value.tolist())
    raise TypeError(f"A record has no place for a {type(value).__name__}. Give text, numbers, lists or mappings.")


def rebuilt(kind: type[T], value: Any) -> T:
    """The dataclass that `writable` has made a dictionary of.

    Args:
        kind: The dataclass.
        value: The dictionary.

    Raises:
        ValueError: If a field is missing, unknown, or of another kind.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind.__name__} must be a JSON object, but is {value!r}.")
    hints = get_type_hints(kind)
    if set(hints) != set(value):
        missing, unknown = sorted(set(hints) - set(value)), sorted(set(value) - set(hints))
        raise ValueError(f"{kind.__name__} lacks {missing} and has the unknown fields {unknown}.")
    return kind(**{name: _read(hint, value[name], f"{kind.__name__}.{name}") for name, hint in hints.items()})


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return _read(next(part for part in arguments if part is not NoneType), value, where)
    if is_dataclass(hint):
        return rebuilt(hint, value)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], part, where) for part in value)
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], part, where) for key, part in value.items()}
    if hint is float and isinstance(value, str):
        number = float(value)
        if not isfinite(number) or repr(number) != value:
            raise ValueError(f"{where} must be a decimal string as Python writes it, but is {value!r}.")
        return number
    kind = str if hint not in (int, bool) else hint  # a Literal is of strings
    if not isinstance(value, kind) or isinstance(value, bool) != (hint is bool):
        raise ValueError(f"{where} must be {getattr(hint, '__name__', hint)}, but is {value!r}.")
    return value


def _check(value: Any, path: str) -> None:
    where = path or "the value"
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise ValueError(f"{where} holds half a surrogate pair, which UTF-8 can't write: {value!r}.")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise ValueError(f"{where} is {value}, but integers are below 2**53 in size. Write it as a string.")
    elif isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise ValueError(f"{where} has the key {key!r}, but keys are ASCII strings. Use a list of pairs.")
            _check(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _check(part, f"{path}[{number}]")
    else:
        hint = " Write measured numbers as decimal strings." if isinstance(value, float) else ""
        raise ValueError(f"{where} is the {type(value).__name__} {value!r}, for which a record has no place.{hint}")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, part in pairs:
        if key in value:
            raise ValueError(f"The key {key!r} is there twice.")
        value[key] = part
    return value


def _refused(number: str) -> Any:
    raise ValueError(f"The number {number} is no integer. Measured numbers are decimal strings in a record.")
