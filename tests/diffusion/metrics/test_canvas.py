from __future__ import annotations

import math

import pytest

from lightning_unlearn.diffusion.metrics.canvas import AccuracyMatrix
from tests.diffusion.canvas.grids import by_hand, perfect


def test_a_grid_by_hand() -> None:
    matrix = AccuracyMatrix.from_scores(perfect(), {"y": by_hand(), "A": by_hand()})
    assert (matrix.targets, matrix.concepts) == (("A", "y"), ("A", "B", "x", "y"))
    assert matrix.row("A").tolist() == [0.5, 1, 1, 0.5]
    assert matrix.row().tolist() == [1, 1, 1, 1]
    assert matrix.read_out("A") == {"UA": 0.5, "IRA": 1.0, "CRA": 0.75, "CRA_without_target": 1.0}
    # Without the column of y: style A is right on neither (A, x), style B on (B, x).
    assert matrix.read_out("y") == {"UA": 0.5, "IRA": 1.0, "CRA": 0.75, "CRA_without_target": 0.5}


def test_its_summary() -> None:
    summary = AccuracyMatrix.from_scores(perfect(), {"A": by_hand()}).summary()
    assert set(summary) == {f"style/{name}" for name in ("UA", "IRA", "CRA", "CRA_without_target", "H")}
    assert summary["style/CRA"].value == 0.75
    assert summary["style/H"].value == pytest.approx(3 / (2 + 1 + 4 / 3))
    assert math.isnan(summary["style/UA"].low)  # a single run has no spread
