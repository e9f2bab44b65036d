"""The demo of concept erasure, whole, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_unlearn.demos.diffusion import demo_diffusion
from lightning_unlearn.report.model import UnlearningReport


def test_what_is_not_there_is_an_error() -> None:
    for style in ("photo", "magic"):
        with pytest.raises(ValueError, match=r"style must be 'stripes', .* but got '(photo|magic)'"):
            demo_diffusion(style=style)


@pytest.mark.slow
@pytest.mark.alone
def test_the_demo_erases_a_style(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    report = demo_diffusion(str(tmp_path))
    forget, others = (report.measurement("outcome", name) for name in ("forget", "other styles"))
    assert forget.anchors.original is not None
    assert forget.anchors.original >= 0.9
    assert forget.value is not None
    assert forget.value <= 0.2
    assert others.value is not None
    assert others.value >= 0.8
    assert UnlearningReport.read(tmp_path) == report
    page = (tmp_path / "report.html").read_text()
    assert "ESD erases the style “negative”" in page
    images = re.findall(r'src="data:image/png;base64,', page)
    assert len(images) == 2 * 30 + 5
    StableDiffusionPipeline.from_pretrained(tmp_path / "model")
