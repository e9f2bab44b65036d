from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional import ascent_step, centre_crop, centred_fft2, l2_norms, project_l2, project_linf


def rows() -> torch.Tensor:
    return torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.complex64)


def test_projections_leave_what_is_inside_and_are_idempotent() -> None:
    delta = rows()
    for project, radius in ((project_linf, 0.3), (project_l2, 2.0)):
        once = project(delta, radius)
        assert torch.allclose(project(once, radius), once)
        assert torch.allclose(project(0.1 * once, radius), 0.1 * once)
    assert torch.view_as_real(project_linf(delta, 0.3)).abs().max().item() == pytest.approx(0.3)
    assert project_l2(delta, 2.0).flatten(1).norm(dim=1).tolist() == pytest.approx([2.0] * 3)
    assert not project_l2(torch.zeros_like(delta), 1.0).any()
    assert not project_l2(delta, 0.0).any()


def test_each_row_has_its_own_radius() -> None:
    radius = torch.tensor([0.5, 1.0, 100.0]).view(3, 1, 1, 1)
    found = project_l2(rows(), radius)
    assert found.flatten(1).norm(dim=1)[:2].tolist() == pytest.approx([0.5, 1.0])
    assert torch.equal(found[2], rows()[2])
    assert l2_norms(rows()).shape == (3, 1, 1, 1)


def test_a_step_is_a_corner_or_a_unit_vector_and_ignores_what_is_no_number() -> None:
    gradient = rows()
    gradient[1, 0, 0, 0] = complex("nan")
    corner = ascent_step(gradient, "linf")
    assert corner[1, 0, 0, 0] == 0
    assert torch.view_as_real(corner).abs().sum() == 2 * (gradient.numel() - 1)
    assert ascent_step(gradient, "l2").flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    "sizes", [((8, 8), (4, 6)), ((9, 8), (4, 5)), ((4, 5), (9, 8)), ((7, 4), (4, 8)), ((5, 5), (5, 5))]
)
def test_cutting_keeps_the_centre(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    (height, width), (rows_, columns) = sizes
    image = torch.zeros(2, height, width)
    image[:, height // 2, width // 2] = 1
    cut = centre_crop(image, rows_, columns)
    assert cut.shape == (2, rows_, columns)
    assert cut[:, rows_ // 2, columns // 2].tolist() == [1, 1]
    assert cut.sum() == 2
    assert centred_fft2(cut).imag.abs().max() < 1e-6
