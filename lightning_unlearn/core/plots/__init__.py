"""Matplotlib figures of evaluations, comparisons and masks."""

from __future__ import annotations

from lightning_unlearn.core.plots.bars import BarSet, bar_figure
from lightning_unlearn.core.plots.grids import density_figure, heat_map_figure, matrix_figure
from lightning_unlearn.core.plots.images import error_map_figure
from lightning_unlearn.core.plots.lines import Line, curve_figure, line_figure
from lightning_unlearn.core.plots.panels import Panel, panel_figure
from lightning_unlearn.core.plots.ranges import gap_figure, outcome_figure
from lightning_unlearn.core.plots.scatter import Point, scatter_figure
from lightning_unlearn.core.plots.style import PALETTE

__all__ = [
    "PALETTE",
    "BarSet",
    "Line",
    "Panel",
    "Point",
    "bar_figure",
    "curve_figure",
    "density_figure",
    "error_map_figure",
    "gap_figure",
    "heat_map_figure",
    "line_figure",
    "matrix_figure",
    "outcome_figure",
    "panel_figure",
    "scatter_figure",
]
