"""Losses and learning rate decay for training stable unrolled networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["complex_mse", "linear_decay", "unrolled_stability"]


def complex_mse(image: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared error over the real and imaginary parts, $\frac{1}{2n} \lVert x - t \rVert_2^2$ for $n$ pixels.

    Args:
        image: Complex, shape ``(..., B, H, W)``.
        target: Complex, shape ``(B, H, W)``, or a shape that broadcasts to that of ``image``.

    Returns:
        A scalar.

    Example:
        >>> complex_mse(torch.tensor([[[0.1 + 0.2j]]]), torch.zeros(1, 1, 1)).item()
        0.02499999850988388
    """
    return (image - target).abs().square().mean() / 2


def unrolled_stability(denoised: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    r"""The unrolled stability loss of SMUG, which keeps the denoiser of each step insensitive to noise on its input.

    $$\ell_{UStab} = \sum_{n=0}^{N-1} \mathbb{E}_\eta\, \mathrm{MSE}\big(D_\theta(x_n + \eta),\, t_n\big)$$

    Args:
        denoised: For each of the ``N`` steps, the samples $D_\theta(x_n + \eta_i)$: complex, shape ``(M, B, H, W)``.
        targets: Target $t_n$ of each step, such as $D_\theta(t)$ or $t$: complex, shape ``(B, H, W)``.

    Returns:
        A scalar.

    Raises:
        ValueError: If there is not one target for each step.

    Example:
        >>> samples, target = torch.full((3, 1, 2, 2), 0.1 + 0.1j), torch.zeros(1, 2, 2)
        >>> round(unrolled_stability([samples] * 8, [target] * 8).item(), 6)  # 8 steps, each with an MSE of 0.01
        0.08

    References:
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """
    if len(denoised) != len(targets):
        raise ValueError(f"Each step needs a target, but there are {len(denoised)} steps and {len(targets)} targets.")
    terms = [complex_mse(samples, target) for samples, target in zip(denoised, targets, strict=True)]
    return torch.stack(terms).sum()


def linear_decay(epoch: int, epochs: int, constant: int, offset: int) -> float:
    r"""Factor of a learning rate that is first constant and then falls linearly.

    $$1 - \frac{\max(0,\, e + 1 - c)}{E + 1 - s}$$

    The code of SMUG has $c = s = 20$ for the denoiser and all smoothed networks, and $c = 30$, $s = 0$ for MoDL.

    Args:
        epoch: The epoch $e$, counted from 0.
        epochs: Epochs of the run, $E$.
        constant: Epochs $c$ at the full rate.
        offset: Epochs $s$ subtracted from the length of the run in the slope.

    Returns:
        The factor, at least 0.

    Example:
        >>> [round(linear_decay(epoch, 60, 20, 20), 5) for epoch in (0, 19, 20, 59)]
        [1.0, 1.0, 0.97561, 0.02439]
    """
    return max(0.0, 1 - max(0, epoch + 1 - constant) / max(1, epochs + 1 - offset))
