"""The demo of concept erasure, whole, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_unlearn.cli.forget import demo_diffusion
from lightning_unlearn.report.model import UnlearningReport


def test_what_is_not_there_is_an_error() -> None:
    for style in ("photo", "magic"):
        with pytest.raises(ValueError, match=r"style must be 'stripes', .* but got '(photo|magic)'"):
            demo_diffusion(style=style)


@pytest.mark.slow
@pytest.mark.alone
def test_the_demo_erases_a_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    demo_diffusion(str(tmp_path / "demo"))
    report = UnlearningReport.read(tmp_path / "demo")
    assert report.headline is not None
    assert report.headline.word == "no trace found"
    numbers = {part.key: part for part in report.section("outcome").measurements}
    (shown,) = (part for key, part in numbers.items() if key.startswith("images that show the concept"))
    assert shown.anchors.original is not None
    assert shown.anchors.original >= 0.9
    assert shown.value is not None
    assert shown.value <= 0.1
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "ESD erases “negative”" in page
    images = re.findall(r'src="data:image/png;base64,', page)
    assert len(images) == 2 * 30 + 5
    StableDiffusionPipeline.from_pretrained(tmp_path / "demo" / "model")
