"""Choice of the argument of a denoiser that gets noise."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["named", "noisy_argument", "parameter_names"]

Place = int | str


def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Place, Any]]:
    """Arguments by position or name, in the order of the call."""
    return [*enumerate(args), *kwargs.items()]


def parameter_names(part: nn.Module) -> list[str]:
    """Names of the parameters of a part's forward method; none if they are not known, as those of a script are not."""
    plain = getattr(part, "_orig_mod", part)  # of a compiled module
    try:
        parameters = signature(plain.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@torch.compiler.disable
def noisy_argument(
    parameters: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], argument: str | None = None
) -> tuple[Place, Tensor]:
    """The argument that gets noise, which is a batch of images.

    Args:
        parameters: Names of the parameters of the method that is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        argument: Name of the argument in the signature; by default the first tensor in the order of the signature,
            whatever the order of the call.

    Returns:
        Position or keyword, and the tensor.

    Raises:
        TypeError: If there is no such argument, it is no batch of real or complex images, or, being the first by
            default, has one number per row where another one has more.

    Example:
        >>> named = {"sigma": torch.ones(2), "image": torch.zeros(2, 1, 8, 8)}
        >>> noisy_argument(["image", "sigma"], (), named)[0]
        'image'
    """
    if argument is not None:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        if not isinstance(given.get(argument), Tensor):
            raise TypeError(
                f"SmoothDenoiser(argument={argument!r}) adds noise to an argument of this name, but the part was "
                f"called with no tensor of this name. Its arguments are {', '.join(parameters) or 'unnamed'}."
            )
        position = parameters.index(argument) if argument not in kwargs else argument
        return position, _checked(given[argument])
    order = {name: place for place, name in enumerate(parameters)}
    inputs: list[tuple[Place, Any]] = [
        *enumerate(args),
        *sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))),
    ]
    tensors = [(place, value) for place, value in inputs if isinstance(value, Tensor)]
    if not tensors:
        kinds = ", ".join(type(value).__name__ for _, value in inputs) or "nothing"
        raise TypeError(
            f"SmoothDenoiser: a denoiser takes a tensor, but the part was called with {kinds}. Name the part that "
            "takes the image itself in module_path."
        )
    place, x = tensors[0]
    larger = [other for _, other in tensors[1:] if _is_image(other) and len(_checked(x)) in (1, len(other))]
    if x.numel() == len(x) and any(other.numel() > len(other) for other in larger):
        raise TypeError(
            f"SmoothDenoiser: the first tensor that the part was called with has one number per row, shape "
            f"{tuple(x.shape)}, as a noise level or a time step has, and not an image. Name the argument that is the "
            f"image: argument={_example(parameters, place)}."
        )
    return place, _checked(x)


def _example(parameters: Sequence[str], place: Place) -> str:
    others = [name for number, name in enumerate(parameters) if place not in (number, name)]
    return repr(others[0]) if others else "'x'"


def _is_image(x: Tensor) -> bool:
    return bool(x.dim()) and (x.is_floating_point() or x.is_complex())


def _checked(x: Tensor) -> Tensor:
    if not _is_image(x):
        raise TypeError(
            "SmoothDenoiser: noise is added to a batch of real or complex images, but the first tensor that the part "
            f"was called with is {x.dtype} of shape {tuple(x.shape)}. Name the argument that is the image, as in "
            "argument='x', or another part in module_path."
        )
    return x
