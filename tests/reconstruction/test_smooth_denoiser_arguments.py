"""Calls of denoisers that are written in other ways than ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import GaussianSmoother
from lightning_unlearn.core.distributed import Replica
from lightning_unlearn.reconstruction.smoothed_forward import Draws, SmoothedForward
from tests.helpers import trainer
from tests.reconstruction.test_smooth_denoiser import IMAGES, LitUser, denoiser, predicted, rows, smooth


class Calls(nn.Module):
    """A net that calls its denoiser in the user's own way."""

    def __init__(self, part: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.denoiser, self.call = part, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.denoiser, x)


class LevelFirst(nn.Module):
    """Takes the noise level before the image, as solvers of differential equations do."""

    def forward(self, level: Tensor, x: Tensor) -> Tensor:
        return x.square() * level.view(-1, 1, 1, 1)


class LevelLast(nn.Module):
    """Takes the image first."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x.square() * level.view(-1, 1, 1, 1)


def levels(x: Tensor) -> Tensor:
    return torch.arange(1.0, len(x) + 1)


def squares(smoother: GaussianSmoother, x: Tensor, *key: int) -> Tensor:
    """The mean of the square times the level."""
    return (x + smoother.noise(x, key)).square().mean(0) * levels(x).view(-1, 1, 1, 1)


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda part, x: part(x, levels(x)),
        lambda part, x: part(x=x, level=levels(x)),
        lambda part, x: part(level=levels(x), x=x),
        lambda part, x: part(x, level=levels(x).view(-1, 1)),
    ],
)
def test_the_signature_and_not_the_call_decides_what_gets_noise(call: Any) -> None:
    found = predicted(Calls(LevelLast(), call), smooth(), rows(2))  # type: ignore[arg-type]
    torch.testing.assert_close(found, squares(GaussianSmoother(0.3, 4), IMAGES[:2], 3, 0, 0, 0))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_image_may_be_named(compiled: bool) -> None:
    torch._dynamo.reset()
    part: Any = torch.compile(LevelFirst(), backend="eager") if compiled else LevelFirst()
    expected = squares(GaussianSmoother(0.3, 4), IMAGES[:2], 3, 0, 0, 0)
    for call in (lambda part, x: part(levels(x), x), lambda part, x: part(levels(x), x=x)):
        found = predicted(Calls(part, call), smooth(argument="x"), rows(2))  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1, 1)])
def test_a_noise_level_gets_no_noise(shape: tuple[int, ...]) -> None:
    module = LitUser(Calls(LevelFirst(), lambda part, x: part(levels(x).view(shape), x)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"one number per row, shape \(2,.*argument='x'"):
        trainer(smooth()).predict(module, rows())
    one = Calls(LevelFirst(), lambda part, x: part(torch.ones(1), x))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="argument='x'"):
        predicted(one, smooth(n_samples=2))  # as many samples as rows


def test_a_step_number_before_the_image_names_the_way_out() -> None:
    net = Calls(LevelFirst(), lambda part, x: part(torch.arange(len(x)), x))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"int64 of shape.*argument='x'"):
        predicted(net, smooth())
    assert predicted(net, smooth(argument="x")).shape == IMAGES.shape


def test_a_name_that_is_no_argument_is_refused() -> None:
    with pytest.raises(TypeError, match=r"argument='y'.*level, x"):
        predicted(Calls(LevelFirst(), lambda part, x: part(levels(x), x)), smooth(argument="y"))  # type: ignore[arg-type]


def test_numbers_per_row_alone_are_the_input() -> None:
    smoothed = SmoothedForward(torch.square, GaussianSmoother(0.1, 4), _begun())
    noise = GaussianSmoother(0.1, 4).noise(torch.ones(3, 1), (0, 5, 5, 0))
    torch.testing.assert_close(smoothed(torch.ones(3, 1)), (1 + noise).square().mean(0))


def _begun() -> Draws:
    draws = Draws(Replica(0, 1))
    draws.begin(0, 5, 5)
    return draws


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="Python 3.11 adds notes to errors")
def test_a_call_without_rows_says_what_is_missing() -> None:
    net = Calls(denoiser(), lambda part, x: torch.stack([part(image) for image in x]))
    with pytest.raises(RuntimeError, match="channels") as raised:
        predicted(net, smooth())
    assert "image[None]" in raised.value.__notes__[0]


class OwnBatch(nn.Module):
    """Takes an image without channels and adds the dimensions itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image[None, None])[0, 0]


def test_an_image_without_a_batch_is_told() -> None:
    net = Calls(OwnBatch(), lambda part, x: torch.stack([part(image[0])[None] for image in x]))
    with pytest.warns(UserWarning, match=r"for 6 rows of 6 numbers, but OwnBatch has convolutions.*image\[None\]"):
        predicted(net, smooth())


def test_rows_of_numbers_through_linear_layers_are_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    net = Calls(nn.Linear(72, 72), lambda part, x: part(x.flatten(1)).view_as(x))
    predicted(net, smooth())
    assert not [w for w in recwarn if "SmoothDenoiser" in str(w.message)]
