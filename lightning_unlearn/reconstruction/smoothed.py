"""Reconstruction by an unrolled network with the kinds of smoothing of SMUG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import above, one_of
from lightning_unlearn.functional.reconstruction.fourier import as_channels
from lightning_unlearn.reconstruction.operators import LinearOperator
from lightning_unlearn.reconstruction.unrolled import Denoise, Unrolled, UnrolledNetwork
from lightning_unlearn.smoothing.gaussian import GaussianSmoother

__all__ = ["Smoothed", "Smoothing", "SmoothingMode", "reconstruct"]

SmoothingMode = Literal["vanilla", "rs_e2e", "rs_e2e_image", "smug", "smug_v0", "weighted_smug"]

_SMALLEST_SUM = 1e-8


class Smoothed(NamedTuple):
    """A smoothed reconstruction and its intermediate results.

    Args:
        image: The reconstruction. Shape (B, H, W), complex.
        states: Inputs of the denoiser at each step, before noise. Each of shape (B, H, W); for ``"rs_e2e"`` those of
            all samples, (M B, H, W).
        samples: The samples of each mean, of shape (M, B, H, W): for SMUG the denoised images of each step; for
            ``"smug_v0"`` the images after each step; for ``"rs_e2e"`` the reconstructions.
    """

    image: Tensor
    states: list[Tensor]
    samples: list[Tensor]


@dataclass(frozen=True)
class Smoothing:
    r"""The kind of smoothing of an unrolled network.

    All means are over $\eta_i \sim \mathcal{N}(0, \sigma^2)$, independent in real and imaginary parts, with
    $Q = A^H A + \lambda I$. With $\sigma = 0$ each mode is the network itself.

    - ``"smug"``: $x_{n+1} = Q^{-1}\big(z + \lambda\, \mathbb{E}\, D(x_n + \eta)\big)$. The denoiser is smoothed.
    - ``"weighted_smug"``: the mean of the denoiser has the weights $E_\phi(x_n + \eta_i)$.
    - ``"smug_v0"``: $x_{n+1} = \mathbb{E}\, Q^{-1}\big(z + \lambda D(x_n + \eta)\big)$. Since data consistency is
    affine,
      this is SMUG with $M$ times as many solves.
    - ``"rs_e2e"``: $\mathbb{E}\, R(y + M \eta)$. The whole network is smoothed, over noise on the sampled k-space.
    - ``"rs_e2e_image"``: the same with noise on the input of the first denoiser, and clean measurements. For MoDL that
      input is the zero-filled image $x_0$, as in the first version of the paper.
    - ``"vanilla"``: the network itself.

    Args:
        mode: One of these.
        smoother: Draws the noise; not needed for ``"vanilla"``.
        weighting: Maps noisy images (N, 2, H, W) to weights (N,), for ``"weighted_smug"``.
        shared_noise: Whether all steps use the same noise, as in the code of the first version.
        clamp: Limit of the real and imaginary parts of noisy images; the code of SMUG uses 1.

    Raises:
        ValueError: If the mode is unknown, the clamp is not positive, or a part that the mode needs is missing.

    References:
        Li et al., *SMUG: Towards Robust MRI Reconstruction by Smoothed Unrolling*, arXiv:2303.12735;
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """

    mode: SmoothingMode = "smug"
    smoother: GaussianSmoother | None = None
    weighting: nn.Module | None = None
    shared_noise: bool = False
    clamp: float | None = None

    def __post_init__(self) -> None:
        one_of("mode", self.mode, SmoothingMode)
        if self.mode != "vanilla" and self.smoother is None:
            raise ValueError(f"mode={self.mode!r} is a mean over noise. Pass smoother=GaussianSmoother(sigma=0.01).")
        if (self.mode == "weighted_smug") != (self.weighting is not None):
            raise ValueError("weighting is of mode='weighted_smug', which needs one, such as WeightEncoder().")
        if self.clamp is not None:
            above("clamp", self.clamp, 0)

    @property
    def samples(self) -> int:
        """Number of samples per mean; 1 without noise."""
        return self.smoother.n_samples if self.smoother is not None and self.smoother.sigma else 1

    def noisy(self, x: Tensor, key: Sequence[int], rows: Tensor | None) -> Tensor:
        """Noisy samples of a batch. Shape (M, *x.shape)."""
        assert self.smoother is not None
        if not self.smoother.sigma:
            return x[None]
        noisy = x + self.smoother.noise(x, key, rows)
        if self.clamp is None:
            return noisy
        return torch.view_as_complex(torch.view_as_real(noisy).clamp(-self.clamp, self.clamp))


def reconstruct(
    network: UnrolledNetwork,
    operator: LinearOperator,
    kspace: Tensor,
    smoothing: Smoothing,
    key: Sequence[int] = (),
    rows: Tensor | None = None,
    steps: int | None = None,
) -> Smoothed:
    """Reconstruct images with a smoothed network.

    All samples of a step go through the denoiser in one batch. With ``N`` steps and ``M`` samples, SMUG costs ``N M``
    passes of the denoiser and ``N`` solves per image; ``"rs_e2e"`` and ``"smug_v0"`` cost ``N M`` of both.

    Args:
        network: The network, which is not changed.
        operator: The measurements' operator.
        kspace: The measurements, as returned by ``operator.A``.
        smoothing: The kind of smoothing.
        key: Determines the noise together with the smoother's seed, for example the training step.
        rows: Numbers of the images in their data set, which determine their noise; by default 0, 1, and so on.
        steps: Number of steps; by default that of the network.

    Returns:
        The images and the samples they were averaged over.

    Example:
        >>> from lightning_unlearn import ConvDenoiser, MoDL, MultiCoilMRI
        >>> maps, mask = torch.ones(1, 1, 8, 8, dtype=torch.complex64), torch.ones(8, dtype=torch.bool)
        >>> operator, network = MultiCoilMRI(maps, mask), MoDL(ConvDenoiser(channels=4, depth=2), steps=3)
        >>> kspace = operator.A(torch.randn(2, 8, 8, dtype=torch.complex64))
        >>> found = reconstruct(network, operator, kspace, Smoothing("smug", GaussianSmoother(0.01, n_samples=5)))
        >>> found.image.shape, len(found.samples), found.samples[0].shape
        (torch.Size([2, 8, 8]), 3, torch.Size([5, 2, 8, 8]))
    """
    if smoothing.mode == "vanilla":
        image, states = network(operator, kspace, steps)
        return Smoothed(image, states, [])
    run = _Run(network, operator, kspace, smoothing, tuple(key), rows, steps)
    if smoothing.mode == "smug_v0":
        return run.averaged_steps()
    if smoothing.mode in ("rs_e2e", "rs_e2e_image"):
        return run.end_to_end()
    return run.averaged_denoiser()


class _Run(NamedTuple):
    network: UnrolledNetwork
    operator: LinearOperator
    kspace: Tensor
    smoothing: Smoothing
    key: tuple[int, ...]
    rows: Tensor | None
    steps: int | None

    def noisy(self, x: Tensor, step: int) -> Tensor:
        """Samples with the noise of a step."""
        return self.smoothing.noisy(x, self.key if self.smoothing.shared_noise else (*self.key, step), self.rows)

    def end_to_end(self) -> Smoothed:
        """The mean of whole reconstructions."""
        images = len(self.kspace)
        if self.smoothing.mode == "rs_e2e":
            # Noise outside the mask is not read.
            found = self.whole(self.noisy(self.kspace, 0), None)
        else:

            def denoise(image: Tensor, step: int) -> Tensor:
                image = self.noisy(image[:images], 0).flatten(0, 1) if step == 0 else image
                return self.network.denoise(image, step)

            found = self.whole(self.kspace.expand(self.smoothing.samples, *self.kspace.shape), denoise)
        samples = found.image.unflatten(0, (-1, images))
        return Smoothed(samples.mean(0), found.states, [samples])

    def whole(self, kspace: Tensor, denoise: Denoise | None) -> Unrolled:
        """Reconstruct samples of the measurements, shape (M, B, ...)."""
        return self.network(self.operator.repeated(len(kspace)), kspace.flatten(0, 1), self.steps, denoise)

    def averaged_denoiser(self) -> Smoothed:
        """The network with the mean of its denoiser."""
        samples: dict[int, Tensor] = {}

        def denoise(image: Tensor, step: int) -> Tensor:
            noisy = self.noisy(image, step)
            denoised = self.denoised(noisy, step)
            samples.setdefault(step, denoised)  # checkpointing repeats the call in the backward pass
            return self.mean(denoised, noisy)

        found = self.network(self.operator, self.kspace, self.steps, denoise)
        return Smoothed(found.image, found.states, [samples[step] for step in range(len(samples))])

    def averaged_steps(self) -> Smoothed:
        """The network with the mean of each step."""
        many, start = self.operator.repeated(self.smoothing.samples), self.operator.A_adjoint(self.kspace)
        starts = start.expand(self.smoothing.samples, *start.shape).flatten(0, 1)
        image, states, samples = start, [], []
        for step in range(self.network.steps if self.steps is None else self.steps):
            states.append(self.network.denoiser_input(self.operator, start, image, step))
            denoised = self.denoised(self.noisy(states[-1], step), step).flatten(0, 1)
            samples.append(self.network.update(many, starts, denoised, step).unflatten(0, (-1, len(start))))
            image = samples[-1].mean(0)
        return Smoothed(image, states, samples)

    def denoised(self, noisy: Tensor, step: int) -> Tensor:
        """Samples of shape (M, B, H, W) after the network's own denoiser."""
        return self.network.denoise(noisy.flatten(0, 1), step).unflatten(0, noisy.shape[:2])

    def mean(self, denoised: Tensor, noisy: Tensor) -> Tensor:
        """The mean over samples of shape (M, B, H, W), weighted by the noisy images if the mode requires it."""
        if self.smoothing.weighting is None:
            return denoised.mean(0)
        weights = self.smoothing.weighting(as_channels(noisy.flatten(0, 1))).float().view(*noisy.shape[:2], 1, 1)
        return (weights * denoised).sum(0) / weights.sum(0).clamp(min=_SMALLEST_SUM)
