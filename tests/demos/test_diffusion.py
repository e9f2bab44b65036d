"""The demo of concept erasure, and its page."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_unlearn.demos import diffusion as module
from lightning_unlearn.demos.diffusion import demo_diffusion

SHARES = {"UA": 0.0, "IRA": 1.0, "CRA": 0.5, "FID": 0.0}


def record() -> dict[str, object]:
    prompts = [("a disk", None, True, False), ("a ring", "hoop <b> a ring", False, True), ("a box", "x", False, False)]
    keys = ("prompt", "adversarial", "before", "success")
    return {
        "method": "ESD-x",
        "style": "ember",
        "steps": 7,
        "seconds": 3.2,
        "measured": {"before": SHARES, "after": {**SHARES, "UA": 0.9}},
        "attack": {"pre_asr": 1 / 3, "asr": 2 / 3, "prompts": 3},
        "adversarial": [dict(zip(keys, row, strict=True)) for row in prompts],
    }


def test_the_page_shows_every_image_and_what_became_of_each_prompt() -> None:
    images = {"before": torch.rand(6, 3, 8, 8), "after": torch.rand(6, 3, 8, 8), "attacked": torch.rand(3, 3, 8, 8)}
    page = module._page(record(), images, ["disk", "ring", "box"], ["ember", "photo"])
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(shown) == 15
    first = torch.tensor(list(Image.open(io.BytesIO(base64.b64decode(shown[0]))).convert("RGB").tobytes()))
    expected = (images["before"][0].permute(1, 2, 0) * 255).round().flatten().to(torch.int64)
    assert torch.equal(first, expected)
    for text in ("shows it without an attack", "came back", "stays erased", "hoop &lt;b&gt; a ring", "10 %"):
        assert text in page
    assert page.count("<b>") == 0


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="style must be one of"):
        demo_diffusion(style="photo")
    with pytest.raises(ValueError, match="method must be one of"):
        demo_diffusion(method="magic")


@pytest.mark.slow
def test_the_demo_erases_a_style(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    found = demo_diffusion(str(tmp_path))
    assert found["measured"]["before"]["UA"] <= 0.1
    assert found["measured"]["after"]["UA"] >= 0.8
    assert found["measured"]["after"]["IRA"] >= 0.8
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert "ESD-x erases the style" in (tmp_path / "report.html").read_text()
    StableDiffusionPipeline.from_pretrained(tmp_path / "model")
