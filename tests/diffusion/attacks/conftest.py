from __future__ import annotations

from pathlib import Path

import pytest

from lightning_unlearn import LitTextToImage
from tests.diffusion.tiny import write_pipeline


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that predicts noise, with one block: hundreds of images are drawn here."""
    return write_pipeline(tmp_path_factory.mktemp("attacked_sd"), blocks=1, layers=1)


@pytest.fixture
def model(tiny_sd: Path) -> LitTextToImage:
    return LitTextToImage(str(tiny_sd))
