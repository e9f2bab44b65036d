"""MoDL: denoising alternated with data consistency by conjugate gradients."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.functional.reconstruction.data_consistency import data_consistency
from lightning_unlearn.reconstruction.operators import LinearOperator
from lightning_unlearn.reconstruction.unrolled import UnrolledNetwork

__all__ = ["MoDL"]


class MoDL(UnrolledNetwork):
    r"""Model-based deep learning (MoDL): one denoiser for all steps, each followed by data consistency.

    $$x_0 = A^H y \qquad x_{n+1} = (A^H A + \lambda I)^{-1}\big(A^H y + \lambda D_\theta(x_n)\big)$$

    $\lambda$ is fixed, as in SMUG.

    Args:
        denoiser: $D_\theta$ maps images (N, 2, H, W), whose channels are real and imaginary part, to the same shape.
        steps: Number of steps $N$.
        weight: $\lambda$; smaller values keep the image closer to the measurements.
        tolerance: Relative residual at which the solver stops for an image.
        iterations: Maximum number of solver iterations; a ``weight`` below 0.06 needs more than 30.
        checkpointing: Whether to recompute a denoiser's activations in the backward pass instead of keeping those of
            all steps. Gradients are the same; batch statistics would be updated twice.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> from lightning_unlearn import ConvDenoiser, MultiCoilMRI
        >>> operator = MultiCoilMRI(torch.ones(1, 1, 8, 8, dtype=torch.complex64), torch.ones(8, dtype=torch.bool))
        >>> network = MoDL(ConvDenoiser(channels=4, depth=3), steps=2)
        >>> image = torch.randn(1, 8, 8, dtype=torch.complex64)
        >>> network(operator, operator.A(image)).image.shape
        torch.Size([1, 8, 8])

    References:
        Aggarwal et al., *MoDL: Model-Based Deep Learning Architecture for Inverse Problems*, arXiv:1712.02862.
        Li et al., *SMUG: Towards Robust MRI Reconstruction by Smoothed Unrolling*, arXiv:2303.12735.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        steps: int = 8,
        weight: float = 1.0,
        tolerance: float = 1e-6,
        iterations: int = 30,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(denoiser, steps, checkpointing)
        self.weight = above("weight", weight, 0)
        self.tolerance = at_least("tolerance", tolerance, 0.0)
        self.iterations = at_least("iterations", iterations, 1)

    def denoiser_input(self, operator: LinearOperator, start: Tensor, image: Tensor, step: int) -> Tensor:
        """The image itself."""
        return image

    def update(self, operator: LinearOperator, start: Tensor, denoised: Tensor, step: int) -> Tensor:
        """Data consistency."""
        return data_consistency(operator.normal, start, denoised, self.weight, self.tolerance, self.iterations)
