"""Common style of all figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DASHES", "MARKERS", "PALETTE", "matplotlib", "plain"]

PALETTE = ("#c8430a", "#0b5cad", "#00805f", "#a8478f", "#5f6670", "#0e7c93", "#5b4bb5", "#7a6200")
"""Colours of the sets; the first four stay apart under colour blindness."""

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))  # overlapping lines stay visible
MARKERS = "osD^"


def matplotlib() -> Any:
    """The matplotlib package, with the modules that the figures need."""
    try:
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.patches
        import matplotlib.ticker
    except ImportError:
        raise ImportError('Figures are drawn by matplotlib: pip install "lightning-unlearn[report]"') from None
    return matplotlib


def plain(axes: Axes, lines: str, grid: str = "#dddddd") -> None:
    """Remove frame and ticks, and draw grid lines for one axis."""
    axes.tick_params(length=0, pad=7)
    axes.grid(axis=lines, color=grid, linewidth=1)  # type: ignore[arg-type]
    axes.spines[:].set_visible(False)
