"""Attacks, centroids and noise against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.classification.duck import centroid_distance, nearest_wrong_centroid
from lightning_unlearn.functional.classification.fgsm import fgsm
from lightning_unlearn.functional.classification.unsir import unsir_noise
from tests.functional.objectives.test_objectives import close


def test_fgsm_steps_by_the_sign_and_stays_in_the_picture() -> None:
    x, gradient = torch.tensor([[0.0, 0.5, 0.95, 1.0]]), torch.tensor([[-1e-6, 5.0, 2.0, -7.0]])
    close(fgsm(x, gradient, epsilon=0.1)[0], [0.0, 0.6, 1.0, 0.9])
    close(fgsm(x, gradient, epsilon=0.1, clip=None)[0], [-0.1, 0.6, 1.05, 0.9])
    close(fgsm(255 * x, gradient, epsilon=8.0, clip=(0.0, 255.0))[0], [0.0, 135.5, 250.25, 247.0], 1e-4)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6)])
def test_normalized_inputs_are_attacked_as_their_pixels(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pixels, gradient = torch.rand(shape), torch.randn(shape)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.2, 2.0]
    channel = [1, 3, *[1] * (len(shape) - 2)]
    mu, sigma = torch.tensor(mean).view(channel), torch.tensor(std).view(channel)
    attacked = fgsm((pixels - mu) / sigma, gradient, epsilon=0.1, mean=mean, std=std)
    torch.testing.assert_close(attacked * sigma + mu, fgsm(pixels, gradient, epsilon=0.1), atol=1e-6, rtol=0)
    assert (attacked * sigma + mu).min() + 1e-6 >= 0
    assert attacked.min() < 0  # clipping the inputs themselves to [0, 1] would be another attack


def test_fgsm_keeps_the_type_and_takes_one_mean_for_all_channels() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert fgsm(x.bfloat16(), x, epsilon=0.1, mean=[0.5], std=[0.5]).dtype == torch.bfloat16
    same = fgsm(x, x, epsilon=0.1, mean=[0.0] * 3, std=[1.0] * 3)
    assert torch.equal(fgsm(x, x, epsilon=0.1, mean=[0.0], std=[1.0]), same)


CENTROIDS = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 2.0]])
CLASSES = torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("row", "label", "nearest"),
    [
        ([5.0, 1.0], 1, 0),  # 11 degrees from (1, 0): length does not count
        ([5.0, 1.0], 0, 1),  # its own class is no place to go
        ([0.1, 1.0], 5, 1),
        ([0.1, 1.0], 2, 2),
    ],
)
def test_the_nearest_centroid_is_of_another_class(row: list[float], label: int, nearest: int) -> None:
    found = nearest_wrong_centroid(torch.tensor([row]), torch.tensor([label]), CENTROIDS, CLASSES)
    assert found.tolist() == [nearest]


def test_a_row_without_another_class_is_named() -> None:
    with pytest.raises(ValueError, match=r"classes \[2\] only, so rows of the classes \[2\]"):
        nearest_wrong_centroid(torch.ones(2, 2), torch.tensor([1, 2]), CENTROIDS[1:2], CLASSES[1:2])


def test_centroid_distance_and_its_gradient() -> None:
    h = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, -4.0]], requires_grad=True)
    distance = centroid_distance(h, torch.tensor([[5.0, 0.0], [0.0, 3.0], [0.0, 1.0]]))
    close(distance.detach(), [0.0, 1 - math.sqrt(0.5), 2.0])
    (gradient,) = torch.autograd.grad(distance[1], h)
    close(gradient[1], [math.sqrt(2) / 4, -math.sqrt(2) / 4])


def noise_loss(noise: Tensor, penalty: float) -> Tensor:
    return unsir_noise(torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2]), noise, penalty=penalty)


def test_unsir_noise() -> None:
    noise = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    close(noise_loss(noise, 0.1), [2.5 - 0.407605964, 0.1 - 2.407605964])
    close(noise_loss(noise, 0.0), [-0.407605964, -2.407605964])
