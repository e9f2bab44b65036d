from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from lightning_unlearn import LitTextToImage
from tests.diffusion.attacks.told import PROMPTS
from tests.diffusion.tiny import write_pipeline


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that predicts noise, with one block: hundreds of images are drawn here."""
    return write_pipeline(tmp_path_factory.mktemp("attacked_sd"), blocks=1, layers=1)


@pytest.fixture
def model(tiny_sd: Path) -> LitTextToImage:
    return LitTextToImage(str(tiny_sd))


@pytest.fixture(scope="session")
def targets(tiny_sd: Path) -> Tensor:
    """An image of each prompt."""
    return LitTextToImage(str(tiny_sd)).generate(PROMPTS, [10, 11, 12, 13], steps=2)
