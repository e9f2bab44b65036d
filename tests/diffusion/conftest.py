from __future__ import annotations

from pathlib import Path

import pytest

from lightning_unlearn import LitTextToImage
from tests.diffusion.tiny import write_pipeline
from tests.tiny_models import read_once


@pytest.fixture(scope="session")
def tiny_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that predicts velocity."""
    return read_once(write_pipeline(tmp_path_factory.mktemp("tiny_v"), prediction="v_prediction"))


@pytest.fixture(scope="session")
def deep_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with three blocks and twelve layers of the text encoder."""
    return read_once(write_pipeline(tmp_path_factory.mktemp("deep_sd"), blocks=3, layers=12))


@pytest.fixture
def model(tiny_sd: Path) -> LitTextToImage:
    return LitTextToImage(str(tiny_sd))
