"""The demo of robust reconstruction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lightning_unlearn import BrainSlices, ConvDenoiser, LitReconstruction, MoDL
from lightning_unlearn.demos.mri import demo_mri
from lightning_unlearn.report.model import UnlearningReport


def test_too_short_a_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be at least 4"):
        demo_mri(str(tmp_path), steps=1)


@pytest.mark.slow
def test_the_demo_writes_a_page_and_networks_that_load(tmp_path: Path) -> None:
    report = demo_mri(str(tmp_path), steps=10)
    assert UnlearningReport.read(tmp_path) == report
    page = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 2 * 2 * 3
    assert report.headline is not None
    assert "Intervals are over the images" in report.headline.summary
    batch = next(iter(BrainSlices(voxel=3, test_rows=1).test_dataloader()))
    for name in ("vanilla", "SMUG"):
        network = MoDL(ConvDenoiser(16, 5), 4)
        module = LitReconstruction.load_from_checkpoint(tmp_path / f"{name}.ckpt", network=network, weights_only=True)
        with torch.no_grad():
            assert module.eval().reconstruct(batch).isfinite().all()
