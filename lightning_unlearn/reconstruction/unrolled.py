"""Base class of unrolled networks, which alternate a denoiser with a step towards the measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.functional.reconstruction.fourier import as_channels, as_complex
from lightning_unlearn.reconstruction.operators import LinearOperator

__all__ = ["Denoise", "Unrolled", "UnrolledNetwork", "apply_denoiser"]

Denoise = Callable[[Tensor, int], Tensor]
"""Maps complex images (B, H, W) and the number of the step to denoised images."""


def apply_denoiser(denoiser: nn.Module, image: Tensor) -> Tensor:
    """Complex images after a denoiser of real and imaginary parts.

    Args:
        denoiser: Maps images (N, 2, H, W) to the same shape.
        image: Shape (N, H, W), complex.

    Raises:
        ValueError: If the denoiser returns another shape.
    """
    channels = as_channels(image)
    given = denoiser(channels)
    if not isinstance(given, Tensor) or given.shape != channels.shape:
        kind = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"A denoiser maps images to the same shape, here {tuple(channels.shape)} with real and imaginary part as "
            f"channels, but {type(denoiser).__name__} gives {kind}. Use two channels in and out, and a size of images "
            "that the network keeps."
        )
    return as_complex(given)


class Unrolled(NamedTuple):
    """A reconstruction and the denoiser inputs that led to it.

    Args:
        image: The reconstruction. Shape (B, H, W), complex.
        states: Input of the denoiser at each step. Each of shape (B, H, W), complex.
    """

    image: Tensor
    states: list[Tensor]


class UnrolledNetwork(nn.Module, ABC):
    r"""Base class of networks that reconstruct an image in a fixed number of steps, each with a denoiser pass.

    $$x_0 = A^H y \qquad x_{n+1} = \mathrm{update}\big(D_\theta(\mathrm{input}(x_n))\big)$$

    A subclass implements `denoiser_input` and `update`.

    Args:
        denoiser: Maps images (N, 2, H, W), whose channels are real and imaginary part, to the same shape.
        steps: Number of steps $N$.
        checkpointing: Whether to recompute a denoiser's activations in the backward pass instead of keeping those of
            all steps. Gradients are the same; batch statistics would be updated twice.
    """

    def __init__(self, denoiser: nn.Module, steps: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.steps = at_least("steps", steps, 1)
        self.checkpointing = checkpointing

    @abstractmethod
    def denoiser_input(self, operator: LinearOperator, start: Tensor, image: Tensor, step: int) -> Tensor:
        """The input of the denoiser at a step.

        Args:
            operator: The measurements' operator.
            start: The zero-filled image $A^H y$. Shape (B, H, W).
            image: The image before the step. Shape (B, H, W).
            step: Index of the step, from 0.
        """

    @abstractmethod
    def update(self, operator: LinearOperator, start: Tensor, denoised: Tensor, step: int) -> Tensor:
        """The image after a step.

        Args:
            operator: The measurements' operator.
            start: The zero-filled image $A^H y$. Shape (B, H, W).
            denoised: Output of the denoiser.
            step: Index of the step, from 0.
        """

    def denoise(self, image: Tensor, step: int) -> Tensor:
        """The network's own denoiser, on complex images of shape (B, H, W)."""
        return apply_denoiser(self.denoiser, image)

    def forward(
        self, operator: LinearOperator, kspace: Tensor, steps: int | None = None, denoise: Denoise | None = None
    ) -> Unrolled:
        """Reconstruct images.

        Args:
            operator: The measurements' operator.
            kspace: The measurements, as returned by ``operator.A``.
            steps: Number of steps; by default that of the network.
            denoise: Replaces `denoise` for this call, for example by its mean over noise.

        Returns:
            The images, and the denoiser's input at each step.
        """
        image = start = operator.A_adjoint(kspace)
        states = []
        for step in range(self.steps if steps is None else at_least("steps", steps, 1)):
            states.append(self.denoiser_input(operator, start, image, step))
            denoised = self._denoised(denoise or self.denoise, states[-1], step)
            image = self.update(operator, start, denoised, step)
        return Unrolled(image, states)

    def _denoised(self, denoise: Denoise, image: Tensor, step: int) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(denoise, image, step, use_reentrant=False)
        return denoise(image, step)
