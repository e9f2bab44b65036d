"""Figures of images next to their error maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_unlearn.core.plots.style import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["error_map_figure"]


def error_map_figure(
    images: Sequence[Sequence[Any]],
    errors: Sequence[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    error_limit: float,
    text: str = "#333333",
) -> Figure:
    """Draw rows of grey images, each with its error map at the end, all maps on one scale.

    Args:
        images: Images of each row, 2-D arrays drawn from 0 to 1.
        errors: Error map of each row, a 2-D array.
        rows: Names of the rows.
        columns: Names of the images and of the error map.
        error_limit: Error with the brightest colour.
        text: Colour of the labels.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl, wide = matplotlib(), len(columns)
    with mpl.rc_context({"font.size": 9}):
        figure = mpl.figure.Figure((0.9 + 1.5 * wide, 0.3 + 1.55 * len(rows)), layout="constrained")
        all_axes = figure.subplots(len(rows), wide, squeeze=False)
        for axes_row, name, shown, error in zip(all_axes, rows, images, errors, strict=True):
            for axes, image in zip(axes_row, shown, strict=False):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            drawn = axes_row[-1].imshow(error, cmap="inferno", vmin=0, vmax=error_limit, interpolation="nearest")
            axes_row[0].set_ylabel(name, color=text, parse_math=False)
        for axes, title in zip(all_axes[0], columns, strict=True):
            axes.set_title(title, color=text, parse_math=False)
        for axes in all_axes.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        bar = figure.colorbar(drawn, ax=list(all_axes[:, -1]), shrink=0.8)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelcolor=text)
    return figure
