"""A text encoder that was hardened beside one UNet erases beside another that was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_unlearn import LitTextToImage, export_text_encoder, load_text_encoder
from lightning_unlearn.benchmarks.erasers import ERASERS
from lightning_unlearn.benchmarks.miniature import drawn, erase
from lightning_unlearn.diffusion.data.captioned_images import CaptionedImageDataModule
from lightning_unlearn.diffusion.data.miniature import MiniCanvas, miniature_pipeline
from tests.diffusion.tiny import trainer


class FineTuned(LitTextToImage):
    """Trains on captioned images, as anyone's would."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch["retain"], batch_idx)


@pytest.mark.slow
@pytest.mark.long
def test_it_erases_in_a_fine_tuned_pipeline(tmp_path: Path) -> None:
    eraser = next(e for e in ERASERS if e.name == "AdvUnlearn on the text encoder")
    hardened, _ = erase(eraser, "ember", seed=0)
    export_text_encoder(hardened, tmp_path / "encoder")

    L.seed_everything(0, verbose=False)
    tuned = FineTuned(str(miniature_pipeline()), trainable="full", lr=2e-4)
    rows: Any = MiniCanvas(images=10, first=500)
    data = CaptionedImageDataModule(list(rows)[:2], list(rows), anchor="a disk image", size=32, batch_size=2,
                                    retain_batch_size=16, epoch="retain")  # fmt: skip
    data.tokenizer = tuned.tokenizer
    trainer(max_steps=60).fit(tuned, data)
    before = drawn(tuned.eval(), tuned, "ember", seed=0, images=1)
    assert before["UA"] <= 0.2

    load_text_encoder(tuned, tmp_path / "encoder")
    after = drawn(tuned, tuned, "ember", seed=0, images=1)
    assert after["UA"] >= 0.8
    assert after["IRA"] >= 0.7
