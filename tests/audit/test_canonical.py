"""Canonical bytes of records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from lightning_unlearn.audit import decide
from lightning_unlearn.audit.canonical import canonical, parsed, rebuilt, writable
from lightning_unlearn.audit.evidence import Evidence, Membership
from tests.audit.sets import RETAINED, SOUND, kept, result_of


def test_the_bytes_of_a_small_object() -> None:
    assert canonical({"b": 2, "a": 1}) == b'{"a":1,"b":2}'
    digest = hashlib.sha256(canonical({"a": 1, "b": 2})).hexdigest()
    assert digest == "43258cff783fe7036d8a43033f830adfc60ec037382473548ac742b888292777"


def test_text_is_utf8_with_the_fewest_escapes() -> None:
    assert canonical(['é"\\\n\x01\x7f/😀']) == '["é\\"\\\\\\n\\u0001\x7f/😀"]'.encode()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1.0}, r"a is the float 1\.0.*decimal strings"),
        ({"a": [1, float("nan")]}, r"a\[1\] is the float nan"),
        ({"a": 2**53}, r"below 2\*\*53"),
        ({"é": 1}, "keys are ASCII"),
        ({1: 1}, "keys are ASCII"),
        ({"a": {"b": "\ud800"}}, r"a\.b holds half a surrogate pair"),
        ({"a": (1,)}, "a is the tuple"),
    ],
)
def test_what_would_have_two_spellings_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":1,"a":2}', "The key 'a' is there twice"),
        ('{"a":1.0}', r"1\.0 is no integer"),
        ('{"a":1e5}', "1e5 is no integer"),
        ('{"a":NaN}', "NaN is no integer"),
        ('{"a":"\\ud800"}', "half a surrogate pair"),
        ("{", "This is no JSON"),
        (b"\xff", "This is no JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_canonical_is_not_read(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(text)


def test_measured_numbers_become_decimal_strings() -> None:
    given = {"a": 1e-07, "b": 1e16, "c": 1.0, "n": np.int64(3), "x": np.float64(0.1), "t": torch.tensor([0.5, 2.0])}
    assert writable(given) == {"a": "1e-07", "b": "1e+16", "c": "1.0", "n": 3, "x": "0.1", "t": ["0.5", "2.0"]}
    with pytest.raises(ValueError, match="no place for nan"):
        writable([float("nan")])
    with pytest.raises(TypeError, match="no place for a set"):
        writable({"a": {1}})


def test_evidence_is_rebuilt_from_its_bytes() -> None:
    evidence = decide(
        [result_of(SOUND)], [kept(RETAINED)], membership=Membership(0.5, 0.4, 0.6), rows=3, not_run={"int8": "no time"}
    ).evidence
    assert rebuilt(Evidence, parsed(canonical(writable(evidence)))) == evidence


@dataclass(frozen=True)
class Pair:
    number: float
    count: int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"number": "0.5"}, r"lacks \['count'\]"),
        ({"number": "0.5", "count": 1, "more": 1}, r"unknown fields \['more'\]"),
        ({"number": "nan", "count": 1}, "decimal string"),
        ({"number": "0.50", "count": 1}, "decimal string"),
        ({"number": "0.5", "count": True}, "count must be int"),
        ([], "must be a JSON object"),
    ],
)
def test_a_damaged_dataclass_is_not_rebuilt(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rebuilt(Pair, value)
