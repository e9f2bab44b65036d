"""ISTA-Net: gradient steps on the measurements, alternated with a learned proximal operator."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.functional.reconstruction.fourier import as_channels
from lightning_unlearn.functional.reconstruction.soft_threshold import soft_threshold
from lightning_unlearn.reconstruction.operators import LinearOperator
from lightning_unlearn.reconstruction.unrolled import UnrolledNetwork, apply_denoiser

__all__ = ["ISTANet", "ProximalBlock"]


class ProximalBlock(nn.Module):
    r"""A learned proximal operator: $P(r) = \tilde F(\mathrm{soft}(F(r), \theta))$.

    $F$ consists of two 3 by 3 convolutions with a ReLU between them; $\tilde F$ has the mirrored layers and is trained
    to be its inverse.

    Args:
        channels: Width of $F$.
        threshold: Initial value of $\theta$.

    Example:
        >>> import torch
        >>> ProximalBlock(channels=4)(torch.randn(1, 2, 5, 6)).shape
        torch.Size([1, 2, 5, 6])
    """

    def __init__(self, channels: int = 32, threshold: float = 0.01) -> None:
        super().__init__()
        at_least("channels", channels, 1)
        self.analysis = _stack(2, channels, channels)
        self.synthesis = _stack(channels, channels, 2)
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, image: Tensor) -> Tensor:
        """The operator on images of shape (N, 2, H, W)."""
        return self.synthesis(soft_threshold(self.analysis(image), self.threshold))

    def asymmetry(self, image: Tensor) -> Tensor:
        r"""$\tilde F(F(r)) - r$ for images of shape (N, 2, H, W)."""
        return self.synthesis(self.analysis(image)) - image


class ISTANet(UnrolledNetwork):
    r"""ISTA-Net with separate weights in each phase.

    $$r_n = x_n - \rho_n A^H(A x_n - y) \qquad x_{n+1} = \tilde F_n(\mathrm{soft}(F_n(r_n), \theta_n))$$

    Its denoiser is the proximal operator, which smoothing averages over noise on $r_n$. Gradients flow through all
    operations, so the operator may have learned maps.

    Args:
        steps: Number of phases. The network can't be unrolled further, because each phase has its own weights.
        channels: Width of $F$.
        step_size: Initial value of $\rho_n$.
        threshold: Initial value of $\theta_n$.
        checkpointing: Whether to recompute activations of the proximal operators in the backward pass.

    Raises:
        ValueError: If a number is out of range, or ``forward`` is called with more steps than there are phases.

    Example:
        >>> import torch
        >>> from lightning_unlearn import MultiCoilMRI
        >>> operator = MultiCoilMRI(torch.ones(1, 1, 8, 8, dtype=torch.complex64), torch.ones(8, dtype=torch.bool))
        >>> network = ISTANet(steps=2, channels=4)
        >>> network(operator, torch.randn(1, 1, 8, 8, dtype=torch.complex64)).image.shape
        torch.Size([1, 8, 8])

    References:
        Zhang and Ghanem, *ISTA-Net: Interpretable Optimization-Inspired Deep Network for Image Compressive Sensing*,
        arXiv:1706.07929.
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """

    denoiser: nn.ModuleList

    def __init__(
        self,
        steps: int = 9,
        channels: int = 32,
        step_size: float = 0.5,
        threshold: float = 0.01,
        checkpointing: bool = False,
    ) -> None:
        blocks = nn.ModuleList(ProximalBlock(channels, threshold) for _ in range(steps))
        super().__init__(blocks, steps, checkpointing)
        self.step_size = nn.Parameter(torch.full((steps,), float(step_size)))

    def denoise(self, image: Tensor, step: int) -> Tensor:
        """The proximal operator of a phase."""
        return apply_denoiser(self.denoiser[step], image)

    def denoiser_input(self, operator: LinearOperator, start: Tensor, image: Tensor, step: int) -> Tensor:
        """The gradient step $r_n$ towards the measurements."""
        if step >= self.steps:
            raise ValueError(
                f"This network has {self.steps} phases with weights of their own, and no step {step + 1}. Ask for "
                "fewer steps, or unroll MoDL, which has one denoiser for all."
            )
        return image - self.step_size[step] * (operator.normal(image) - start)

    def update(self, operator: LinearOperator, start: Tensor, denoised: Tensor, step: int) -> Tensor:
        """The output of the proximal operator."""
        return denoised

    def symmetry_loss(self, states: list[Tensor]) -> Tensor:
        r"""Deviation of each phase's $\tilde F_n$ from the inverse of $F_n$.

        $$\sum_n \mathrm{mean}\big(\tilde F_n(F_n(r_n)) - r_n\big)^2$$

        ISTA-Net adds 0.01 times this to the loss.

        Args:
            states: The inputs of the denoiser, as ``forward`` returns them.

        Returns:
            A scalar; the mean is over real and imaginary parts of all pixels.
        """
        blocks = list(self.denoiser)[: len(states)]
        asymmetries = [block.asymmetry(as_channels(r)) for block, r in zip(blocks, states, strict=True)]  # type: ignore[operator]
        return torch.stack([a.square().mean() for a in asymmetries]).sum()


def _stack(*widths: int) -> nn.Sequential:
    first, second = (nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in pairwise(widths))
    for convolution in (first, second):
        nn.init.xavier_normal_(convolution.weight)
    return nn.Sequential(first, nn.ReLU(), second)
