"""Precision of an audit: asked for, begun in, or fast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_unlearn.audit import precision
from lightning_unlearn.audit.parts import PartKey, Parts
from lightning_unlearn.audit.precision import bf16_speed, resolved

CPU = torch.device("cpu")


@pytest.mark.parametrize(("speed", "expected"), [(0.1, "32"), (1.4, "32"), (1.5, "bf16"), (6.0, "bf16")])
def test_a_cpu_computes_in_bf16_where_that_is_half_as_fast_again(
    speed: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_speed", lambda: speed)
    assert resolved("auto", CPU) == expected
    assert resolved("auto", CPU, begun="bf16") == "bf16"
    assert resolved("auto", CPU, begun="32") == "32"
    assert (resolved("32", CPU, begun="bf16"), resolved("bf16", CPU, begun="32")) == ("32", "bf16")
    assert resolved("auto", torch.device("mps")) == "32"


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bf16_computes_in_fp32(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolved("auto", torch.device("cuda")) == ("bf16" if native else "32")


def test_speed_is_that_of_the_best_turn_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 9.0, 3.0, 1.5, *[4.0] * 10])
    monkeypatch.setattr(precision, "_seconds", lambda *_: next(seconds))
    assert bf16_speed() == 2.0
    monkeypatch.undo()
    assert bf16_speed() > 0


def test_the_precision_that_finished_parts_have(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    assert parts.only("facts", "precision") is None
    parts.put(PartKey("original", "rows", "facts", {"precision": "bf16"}, "code"), {})
    parts.put(PartKey("unlearned", "rows", "facts", {"precision": "bf16"}, "code"), {})
    assert parts.only("facts", "precision") == "bf16"
    parts.put(PartKey("original", "rows", "facts", {"precision": "32"}, "code"), {})
    assert parts.only("facts", "precision") is None
