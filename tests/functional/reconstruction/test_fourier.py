"""The centred transform is unitary, and its phases are those of the shifts."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional.reconstruction.fourier import (
    as_channels,
    as_complex,
    centred_fft2,
    centred_ifft2,
    centring_phases,
)

SIZES = [(8, 8), (7, 6), (6, 9), (5, 11), (1, 4)]


@pytest.mark.parametrize("size", SIZES)
def test_the_transform_is_unitary(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.complex64)
    k = centred_fft2(x)
    torch.testing.assert_close(k.norm(), x.norm())
    torch.testing.assert_close(centred_ifft2(k), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_a_point_at_the_centre_has_a_flat_spectrum_of_phase_0(size: tuple[int, int]) -> None:
    height, width = size
    x = torch.zeros(size, dtype=torch.complex128)
    x[height // 2, width // 2] = 1
    flat = torch.full(size, (height * width) ** -0.5, dtype=torch.complex128)
    torch.testing.assert_close(centred_fft2(x), flat)


def test_a_flat_image_is_a_point_at_the_centre_of_kspace() -> None:
    k = centred_fft2(torch.ones(6, 5, dtype=torch.complex128))
    assert k[3, 2].real == pytest.approx(30**0.5)
    k[3, 2] = 0
    assert k.abs().max() < 1e-12


@pytest.mark.parametrize("size", [1, 2, 3, 8, 15, 320, 368])
def test_phases_replace_the_shifts_exactly(size: int) -> None:
    x = torch.randn(4, size, dtype=torch.complex128)
    image, kspace = centring_phases(size, torch.complex128)
    shifted = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(x, dim=-1), norm="ortho"), dim=-1)
    torch.testing.assert_close(torch.fft.fft(x * image, norm="ortho") * kspace, shifted, atol=1e-12, rtol=0)


def test_channels_are_real_and_imaginary_part() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.complex128)
    assert torch.equal(as_channels(x)[:, 1], x.imag)
    assert torch.equal(as_complex(as_channels(x)), x)
    assert as_complex(as_channels(x).half()).dtype == torch.complex64
