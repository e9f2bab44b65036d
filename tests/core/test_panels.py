from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lightning_unlearn.core.plots import Line, Panel, error_map_figure, line_figure, panel_figure


def panel(*names: str) -> Panel:
    lines = [
        Line(name, [0, 1, 2], [1.0, math.inf, i], i, [0.5, math.nan, i], [1.5, math.nan, i])
        for i, name in enumerate(names)
    ]
    return Panel(lines, "radius", "PSNR")


def test_panels_of_a_row_share_an_axis_and_one_legend_names_all_lines() -> None:
    figure = panel_figure([[panel("a", "b"), panel("b", "c")], [panel("a"), panel("a")]])
    first, second, third, _ = figure.axes
    assert first.get_shared_y_axes().joined(first, second)
    assert not first.get_shared_y_axes().joined(first, third)
    assert [axes.get_ylabel() for axes in figure.axes] == ["PSNR", "", "PSNR", ""]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    assert np.isnan(first.lines[0].get_ydata()[1])  # infinity is a gap
    assert len(first.collections) == 2  # the bands
    assert not panel_figure([[panel("alone")]]).legends


@pytest.mark.parametrize(("count", "label"), [(3, "adversarial\ntraining"), (6, "adversarial…")])
def test_long_names_take_two_rows_where_there_is_room(count: int, label: str) -> None:
    names = ["adversarial training", *"abcde"[: count - 1]]
    figure = line_figure([Line(name, [0, 1], [1.0, 1.0], i) for i, name in enumerate(names)], "strength")
    assert figure is not None
    figure.canvas.draw()
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {label, *names[1:]}
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))


@pytest.mark.parametrize("widths", [(), (0,), (1, 2)])
def test_rows_of_unlike_width_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="as many panels"):
        panel_figure([[panel("a")] * width for width in widths])


def test_all_error_maps_are_on_one_scale() -> None:
    image = np.linspace(0, 1, 64).reshape(8, 8)
    figure = error_map_figure([(image, image), (image, image)], [image, 0.1 * image], ["x", "y"], ["t", "r", "e"], 0.5)
    drawn = [axes.images[0] for axes in figure.axes[:6]]
    assert [map_.get_clim() for map_ in drawn] == [(0, 1), (0, 1), (0, 0.5)] * 2
    assert [axes.get_title() for axes in figure.axes[:3]] == ["t", "r", "e"]
    assert [figure.axes[0].get_ylabel(), figure.axes[3].get_ylabel()] == ["x", "y"]
