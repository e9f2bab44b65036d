"""Coils in a circle, and maps from the centre of k-space."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_unlearn.functional.reconstruction.coils import birdcage_maps, maps_from_center, normalized_maps
from lightning_unlearn.functional.reconstruction.fourier import centred_fft2


def test_the_maps_are_the_formula() -> None:
    height, width, coils = 7, 10, 5
    maps = birdcage_maps(coils, height, width, dtype=torch.complex128)
    raw = torch.zeros(coils, height, width, dtype=torch.complex128)
    for c in range(coils):
        angle = 2 * math.pi * c / coils
        for i in range(height):
            for j in range(width):
                x, y = j / (width / 2) - 1 - 1.5 * math.cos(angle), i / (height / 2) - 1 - 1.5 * math.sin(angle)
                phase = math.atan2(x, -y) - angle
                raw[c, i, j] = complex(math.cos(phase), math.sin(phase)) / math.hypot(x, y)
    torch.testing.assert_close(maps, raw / raw.abs().square().sum(0).sqrt())


def test_all_coils_have_one_phase_at_the_centre() -> None:
    centre = birdcage_maps(8, 32, 32)[:, 16, 16]
    torch.testing.assert_close(centre, torch.full_like(centre, -1j / 8**0.5))


def test_blind_places_stay_0() -> None:
    maps = torch.randn(3, 4, 5, dtype=torch.complex64)
    maps[:, 2, 3] = 0
    norm = normalized_maps(maps).abs().square().sum(0)
    assert norm[2, 3] == 0
    assert norm.sum().item() == pytest.approx(19)


def test_maps_of_the_centre_are_those_of_the_coils_where_there_is_an_image() -> None:
    maps = birdcage_maps(6, 64, 60)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 60), indexing="ij")
    disc = ((x**2 + y**2) < 0.6).float()
    estimated = maps_from_center(centred_fft2(disc * maps), lines=16)
    inner = (x**2 + y**2) < 0.4
    # The maps are known but for one phase, that of the image, which is real here.
    error = (estimated - maps).abs().square().sum(0).sqrt()
    assert error[inner].max() < 0.1
    norm = estimated.abs().square().sum(0)
    assert norm[(x**2 + y**2) > 1.4].max() == 0
    assert norm[inner].sub(1).abs().max() < 1e-5


@pytest.mark.parametrize(("coils", "radius"), [(0, 1.5), (4, 1.4)])
def test_coils_inside_of_the_image_are_refused(coils: int, radius: float) -> None:
    with pytest.raises(ValueError, match="birdcage_maps needs"):
        birdcage_maps(coils, 8, 8, radius)


@pytest.mark.parametrize(("lines", "support"), [(0, 0.1), (9, 0.1), (4, 1.0)])
def test_a_centre_that_is_not_there_is_refused(lines: int, support: float) -> None:
    with pytest.raises(ValueError, match="lines must be in"):
        maps_from_center(torch.ones(2, 8, 8, dtype=torch.complex64), lines, support)
