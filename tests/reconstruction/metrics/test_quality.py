from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn import HFEN, NMSE, ComplexPSNR, ImageQuality, MagnitudePSNR, MagnitudeSSIM
from lightning_unlearn.functional import complex_psnr, hfen, magnitude_psnr, magnitude_ssim, nmse

PAIRS = [
    (ComplexPSNR, complex_psnr),
    (MagnitudePSNR, magnitude_psnr),
    (MagnitudeSSIM, magnitude_ssim),
    (NMSE, nmse),
    (HFEN, hfen),
]
ROWS = 5


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(ROWS, 24, 20, generator=generator, dtype=torch.complex64)
    return target + 0.2 * torch.randn(ROWS, 24, 20, generator=generator, dtype=torch.complex64), target


def shared(rank: int, processes: int) -> list[float]:
    """The values of each image, as a process finds them that has seen its share; a sampler gives two of them row 0."""
    found: list[float] = []
    image, target = images()
    rows = torch.tensor([*range(rank, ROWS, processes), *([0] if rank else [])])
    for kind, _ in PAIRS:
        metric = kind()
        for row in rows.split(2):
            metric.update(image[row], target[row], row)
        found += [float(metric.compute()), *(value for _, value in sorted(metric.per_image().items()))]
    return found


@pytest.mark.parametrize(("kind", "function"), PAIRS)
def test_a_metric_is_the_mean_of_its_function(kind: type[ImageQuality], function: Any) -> None:
    image, target = images()
    metric, each = kind(), function(image, target)
    metric.update(image[3:], target[3:], index=[3, 4])
    metric.update(image[:3], target[:3], index=torch.arange(3))
    assert metric.compute().item() == pytest.approx(each.mean().item(), rel=1e-12)
    assert metric.per_image() == pytest.approx(dict(enumerate(each.tolist())), rel=1e-12)


def test_a_row_that_came_twice_counts_once() -> None:
    image, target = images()
    metric = NMSE()
    metric.update(image, target, index=range(ROWS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.update(image[:2], target[:2], index=[0, 1])
        assert metric.compute().item() == pytest.approx(nmse(image, target).mean().item(), rel=1e-12)


def test_the_difference_of_two_methods_is_taken_image_by_image() -> None:
    image, target = images()
    worse = target + 2 * (image - target)
    a, b = NMSE(), NMSE()
    a.update(image, target, index=range(ROWS))
    b.update(worse.flip(0), target.flip(0), index=range(ROWS - 1, -1, -1))
    assert [b.per_image()[i] / a.per_image()[i] for i in range(ROWS)] == pytest.approx([4.0] * ROWS, rel=1e-5)


def test_a_network_that_diverged_is_not_left_out_of_the_mean() -> None:
    image, target = images()
    metric = MagnitudePSNR()
    metric.update(torch.where(torch.arange(ROWS)[:, None, None] == 2, torch.nan, image), target, index=range(ROWS))
    assert metric.compute().isnan()


def test_no_image_is_an_error_and_reset_forgets() -> None:
    image, target = images()
    metric = ComplexPSNR()
    metric.update(image, target)
    metric.reset()
    warnings.simplefilter("ignore")  # torchmetrics': compute before update
    with pytest.raises(ValueError, match="no images"):
        metric.compute()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="window"):
        MagnitudeSSIM(window=1)
    with pytest.raises(ValueError, match="sigma"):
        HFEN(sigma=0)
