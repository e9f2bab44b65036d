from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional import complex_psnr, hfen, magnitude_psnr, magnitude_ssim, nmse

MEASURES = [complex_psnr, hfen, magnitude_psnr, magnitude_ssim, nmse]


def images(rows: int = 3, side: tuple[int, int] = (40, 31)) -> Tensor:
    return torch.randn(rows, *side, generator=torch.Generator().manual_seed(0), dtype=torch.complex64)


def test_a_constant_error_of_a_tenth_of_the_peak_is_20_db() -> None:
    target = torch.zeros(2, 8, 8, dtype=torch.complex64)
    target[:, 3, 4] = 1j
    for error in (0.1, 0.1j, 0.06 + 0.08j):
        assert complex_psnr(target + error, target).tolist() == pytest.approx([20.0, 20.0], abs=1e-5)


def test_the_complex_psnr_is_that_of_the_two_channels_with_twice_their_mean() -> None:
    target, image = images(), images() + 0.1 * images().flip(0)
    channels = torch.view_as_real(image - target).square().mean((1, 2, 3)) * 2
    expected = 10 * torch.log10(target.abs().amax((1, 2)).square() / channels)
    assert complex_psnr(image, target).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_nine_tenths_of_an_image_has_an_nmse_of_a_hundredth_and_a_tenth_of_hfen() -> None:
    target = images()
    assert nmse(0.9 * target, target).tolist() == pytest.approx([0.01] * 3, rel=1e-6)
    assert hfen(0.9 * target, target).tolist() == pytest.approx([0.1] * 3, rel=1e-6)


def test_magnitudes_do_not_see_the_phase_and_complex_measures_do() -> None:
    target = images()
    turned = target * torch.tensor(1j)
    assert magnitude_psnr(turned, target).min() > 120
    assert magnitude_ssim(turned, target).tolist() == pytest.approx([1.0] * 3, abs=1e-9)
    assert nmse(turned, target).tolist() == pytest.approx([2.0] * 3, rel=1e-6)
    assert complex_psnr(turned, target).max() < 20


def test_hfen_weighs_an_error_of_edges_more_than_a_smooth_one_of_the_same_norm() -> None:
    target, place = images(1, (64, 64)), torch.arange(64) * 2 * torch.pi / 64
    window = (1 - place.cos()) * (1 - place.cos())[:, None]
    smooth, sharp = window * place.cos(), window * (16 * place).cos()
    errors = {name: 0.1 * error / error.norm() * target.norm() for name, error in (("a", smooth), ("b", sharp))}
    assert nmse(target + errors["a"], target).item() == pytest.approx(0.01, rel=1e-4)
    assert nmse(target + errors["b"], target).item() == pytest.approx(0.01, rel=1e-4)
    assert hfen(target + errors["a"], target) < 0.2 * hfen(target + errors["b"], target)


@pytest.mark.parametrize("sigma", [1.0, 1.5])
def test_hfen_has_the_filter_of_scipy(sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    target = images(1, (64, 64)).real
    image = target + 0.1 * images(2, (64, 64))[1:].real
    error, reference = (
        ndimage.gaussian_laplace(x[0].double().numpy(), sigma, mode="constant") for x in (image - target, target)
    )
    expected = (error**2).sum() ** 0.5 / (reference**2).sum() ** 0.5
    assert hfen(image, target, sigma).item() == pytest.approx(expected, rel=0.01)


def test_perfect_images_are_perfect() -> None:
    target = images()
    assert magnitude_psnr(target, target).tolist() == complex_psnr(target, target).tolist() == [torch.inf] * 3
    assert magnitude_ssim(target, target).tolist() == [1.0] * 3
    assert nmse(target, target).tolist() == hfen(target, target).tolist() == [0.0] * 3


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_unit_of_an_image_does_not_matter(measure: Callable[..., Tensor], scale: float) -> None:
    target, image = images(), images() + 0.1 * images().flip(0)
    expected = measure(image, target)
    assert measure(scale * image, scale * target).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_each_image_is_measured_by_itself(measure: Callable[..., Tensor]) -> None:
    target = images() * torch.tensor([1.0, 50.0, 0.02])[:, None, None]
    image = target + 0.1 * target.flip(1)
    together = measure(image, target)
    assert together.dtype == torch.float64
    assert together.tolist() == [measure(image[i : i + 1], target[i : i + 1]).item() for i in range(3)]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("shapes", [((1, 8, 8), (1, 9, 8)), ((8, 8), (8, 8)), ((1, 1, 8, 8), (1, 1, 8, 8))])
def test_other_shapes_are_refused(
    measure: Callable[..., Tensor], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        measure(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("window", [6, 1, 9])
def test_a_window_that_does_not_fit_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match="window"):
        magnitude_ssim(images(1, (8, 8)), images(1, (8, 8)), window)


def test_an_even_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="size=12"):
        hfen(images(), images(), size=12)
