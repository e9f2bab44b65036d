"""A folder of all names of UnlearnCanvas with tiny images, and a tiny vision transformer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS


@pytest.fixture(scope="session")
def canvas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<style>/<object>/<1..3>.jpg`` for the 50 styles, the photos and the 20 objects, of few different images."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("published")
    for tone in range(10):
        Image.new("RGB", (16, 16), (25 * tone, 128, 255 - 25 * tone)).save(folder / f"{tone}.jpg")
    for s, style in enumerate(UNLEARN_CANVAS.all_styles):
        for o, object in enumerate(UNLEARN_CANVAS.objects):
            (folder / "canvas" / style / object).mkdir(parents=True)
            for number in range(1, 4):
                tone = (s + 3 * o + number) % 10
                os.link(folder / f"{tone}.jpg", folder / "canvas" / style / object / f"{number}.jpg")
    return folder / "canvas"


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a vision transformer of random weights that reads 16 pixels."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
