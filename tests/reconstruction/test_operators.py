"""The operator of multi-coil MRI: its formula, its adjoint, and what it shares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_unlearn import LinearOperator, MultiCoilMRI, from_deepinv
from lightning_unlearn.functional import as_channels, birdcage_maps, centred_fft2, centred_ifft2, column_mask

SIZES = [(8, 8), (7, 6), (6, 9), (5, 7)]
BATCHES = [(3, 3), (1, 3), (3, 1), (1, 1)]


def parts(
    size: tuple[int, int], maps: int = 1, masks: int = 1, points: bool = False, dtype: torch.dtype = torch.complex128
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(maps, 4, *size, dtype=dtype, generator=generator)
    s = s / torch.linalg.vector_norm(s, dim=1, keepdim=True)
    return s, torch.rand(masks, 1, size[0] if points else 1, size[1], generator=generator) < 0.6


def noise(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("batches", BATCHES)
def test_it_is_the_formula(size: tuple[int, int], points: bool, batches: tuple[int, int]) -> None:
    maps, mask = parts(size, *batches, points=points)
    operator = MultiCoilMRI(maps, mask)
    x, k = noise(3, *size), noise(3, 4, *size)
    near = {"atol": 1e-12, "rtol": 0.0}
    torch.testing.assert_close(operator.A(x), mask * centred_fft2(maps * x[:, None]), **near)
    torch.testing.assert_close(operator.A_adjoint(k), (maps.conj() * centred_ifft2(mask * k)).sum(1), **near)
    torch.testing.assert_close(operator.normal(x), operator.A_adjoint(operator.A(x)), **near)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 1e-6), (torch.complex128, 1e-12)])
def test_the_adjoint_is_one(size: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    operator = MultiCoilMRI(*parts(size, 2, 2, dtype=dtype))
    x, k = noise(2, *size, dtype=dtype), noise(2, 4, *size, dtype=dtype)
    measured = operator.A(x)
    difference = torch.vdot(measured.flatten(), k.flatten()) - torch.vdot(x.flatten(), operator.A_adjoint(k).flatten())
    assert difference.abs() / (measured.norm() * k.norm()) < tolerance


def test_it_is_the_identity_where_everything_is_measured() -> None:
    maps, _ = parts((7, 6))
    operator = MultiCoilMRI(maps, torch.ones(6, dtype=torch.bool))
    x = noise(2, 7, 6)
    torch.testing.assert_close(operator.normal(x), x)
    torch.testing.assert_close(operator.A(x).norm(), x.norm())


def test_copies_are_in_the_order_of_the_samples() -> None:
    maps, mask = parts((6, 8), 2, 2)
    operator = MultiCoilMRI(maps, mask)
    x = noise(3, 2, 6, 8)
    copies = operator.repeated(3)
    for method in ("A", "normal"):
        rows = getattr(copies, method)(x.flatten(0, 1)).unflatten(0, (3, 2))
        torch.testing.assert_close(rows, torch.stack([getattr(operator, method)(sample) for sample in x]))
    assert copies.repeated(2).rows == 12
    assert copies.with_mask(mask[:1]).rows == copies.to("cpu").rows == 6
    assert copies._maps is operator._maps


def test_maps_and_mask_for_all_images_take_any_number() -> None:
    maps, mask = parts((6, 8))
    operator = MultiCoilMRI(maps, mask)
    for n in (1, 5):
        assert operator.A(noise(n, 6, 8)).shape == (n, 4, 6, 8)
        assert operator.repeated(2).normal(noise(2 * n, 6, 8)).shape == (2 * n, 6, 8)


def test_a_mask_can_be_changed() -> None:
    maps, mask = parts((6, 8), 2, 1)
    other = column_mask(8, 2, seed=1)
    changed = MultiCoilMRI(maps, mask).with_mask(other)
    torch.testing.assert_close(changed.A(noise(2, 6, 8)), MultiCoilMRI(maps, other).A(noise(2, 6, 8)))
    assert changed.mask.shape == (1, 1, 1, 8)


def test_a_mask_of_weights_counts_twice_in_the_normal_operator() -> None:
    maps, mask = parts((6, 8))
    operator, x = MultiCoilMRI(maps, mask * torch.linspace(0.5, 2, 8, dtype=torch.float64)), noise(2, 6, 8)
    torch.testing.assert_close(operator.normal(x), operator.A_adjoint(operator.A(x)))


def test_gradients_are_those_of_a_linear_map() -> None:
    operator = MultiCoilMRI(*parts((5, 6), 2, 2))
    x, k = noise(2, 5, 6).requires_grad_(), noise(2, 4, 5, 6).requires_grad_()
    for function, at in ((operator.A, x), (operator.A_adjoint, k), (operator.normal, x)):
        assert torch.autograd.gradcheck(function, at, check_forward_ad=True, fast_mode=True)


def test_maps_can_be_learned_outside_of_data_consistency() -> None:
    maps, mask = parts((4, 5))
    x = noise(1, 4, 5)

    def normal(maps: Tensor) -> Tensor:
        return MultiCoilMRI(maps, mask).normal(x)

    assert torch.autograd.gradcheck(normal, maps.requires_grad_(), fast_mode=True)


def test_what_is_given_is_left_as_it_was() -> None:
    operator = MultiCoilMRI(*parts((6, 8), 2, 2))
    x, k = noise(2, 6, 8), noise(2, 4, 6, 8)
    before = x.clone(), k.clone(), operator.maps.clone()
    operator.A(x), operator.A_adjoint(k), operator.normal(x)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, k, operator.maps), strict=True))


@pytest.mark.parametrize(
    ("maps", "mask", "message"),
    [
        (torch.ones(1, 2, 4, 4), torch.ones(4), "maps must be complex"),
        (torch.ones(2, 4, 4, dtype=torch.complex64), torch.ones(4), "maps must be complex"),
        (torch.ones(1, 2, 4, 4, dtype=torch.complex64), torch.ones(5), "mask must be of shape"),
        (torch.ones(1, 2, 4, 4, dtype=torch.complex64), torch.ones(1, 2, 4, 4), "mask must be of shape"),
        (torch.ones(2, 2, 4, 4, dtype=torch.complex64), torch.ones(3, 1, 1, 4), "maps are of 2 images and masks of 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(maps: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiCoilMRI(maps, mask)


def test_a_wrong_number_of_images_is_refused() -> None:
    operator = MultiCoilMRI(*parts((4, 4), 2, 2))
    with pytest.raises(ValueError, match="for 2 images, but got 4"):
        operator.A(noise(4, 4, 4))


class Spectrum(torch.nn.Module):
    """A physics in the manner of deepinv: one coil, with a mask for each image of the batch."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def A(self, x: Tensor) -> Tensor:
        return self.mask * as_channels(centred_fft2(torch.complex(x[:, 0], x[:, 1])))

    def A_adjoint(self, y: Tensor) -> Tensor:
        y = self.mask * y
        return as_channels(centred_ifft2(torch.complex(y[:, 0], y[:, 1])))


def test_a_physics_with_a_mask_for_each_image_serves_copies() -> None:
    mask = (torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    operator = from_deepinv(Spectrum(mask))
    ours = MultiCoilMRI(torch.ones(2, 1, 6, 8, dtype=torch.complex128), mask)
    assert isinstance(operator, LinearOperator)
    assert isinstance(ours, LinearOperator)
    x = noise(6, 6, 8)
    torch.testing.assert_close(operator.repeated(3).A(x), ours.repeated(3).A(x)[:, 0])
    torch.testing.assert_close(operator.repeated(3).normal(x), ours.repeated(3).normal(x))
    with pytest.raises(ValueError, match="3 copies of a batch, but got 4"):
        operator.repeated(3).A(x[:4])
    with pytest.raises(TypeError, match="Linear has no A and no A_adjoint"):
        from_deepinv(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_the_multi_coil_physics_of_deepinv_is_the_same_operator() -> None:
    pytest.importorskip("deepinv", exc_type=ImportError)
    from deepinv.physics import MultiCoilMRI as Physics

    maps, mask = birdcage_maps(5, 12, 15)[None], column_mask(15, 3)
    ours = MultiCoilMRI(maps, mask)
    theirs = from_deepinv(Physics(mask=mask.float().expand(12, 15), coil_maps=maps))
    x, k = noise(2, 12, 15, dtype=torch.complex64), noise(2, 5, 12, 15, dtype=torch.complex64)
    near = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(theirs.A(x), ours.A(x), **near)
    torch.testing.assert_close(theirs.A_adjoint(k), ours.A_adjoint(k), **near)
    torch.testing.assert_close(theirs.normal(x), ours.normal(x), **near)
