"""Fast gradient sign attack on a classifier's inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fgsm"]


def fgsm(
    inputs: Tensor,
    gradient: Tensor,
    *,
    epsilon: float,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    clip: tuple[float, float] | None = (0.0, 1.0),
) -> Tensor:
    r"""Fast gradient sign attack, :math:`x' = \mathrm{clip}\big(x + \epsilon\, \mathrm{sign} \nabla_x \ell\big)`.

    The step is made in pixel space: normalized inputs :math:`(x - \mu) / \sigma` are converted to pixels and back.

    Args:
        inputs: Shape ``(B, C, ...)``.
        gradient: Gradient of the loss at the inputs, of the same shape.
        epsilon: Step :math:`\epsilon`, in pixels.
        mean: :math:`\mu` of each channel, shape ``(C,)``, or one value for all; by default 0.
        std: :math:`\sigma > 0`, in the same form; by default 1.
        clip: Lowest and highest pixel value, or ``None`` for unbounded inputs.

    Returns:
        Same shape and type as the inputs, without gradient.

    Example:
        >>> fgsm(torch.tensor([[0.5, 0.95, 0.5]]), torch.tensor([[-3.0, 0.1, 0.0]]), epsilon=0.1)
        tensor([[0.4000, 1.0000, 0.5000]])

    References:
        Goodfellow et al., *Explaining and Harnessing Adversarial Examples*, arXiv:1412.6572.
    """
    center, scale = _by_channel(mean, 0.0, inputs), _by_channel(std, 1.0, inputs)
    pixels = inputs.detach() * scale + center + epsilon * gradient.sign()
    if clip is not None:
        pixels = pixels.clamp(*clip)
    return ((pixels - center) / scale).to(inputs.dtype)


def _by_channel(values: Sequence[float] | None, default: float, inputs: Tensor) -> Tensor:
    given = torch.as_tensor([default] if values is None else values, device=inputs.device, dtype=torch.float32)
    return given.reshape(-1, *[1] * (inputs.dim() - 2))
