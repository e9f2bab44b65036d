"""FID and KID: distances between sets of images."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_unlearn.core.checks import at_least, finite
from lightning_unlearn.diffusion.metrics.features import refuse
from lightning_unlearn.functional.diffusion.distances import frechet_distance

__all__ = ["FID", "KID"]


class FID(FrechetInceptionDistance):
    r"""Fréchet distance of the features of real and of generated images, as if these were normally distributed.

    $$\|\mu_r - \mu_g\|^2 + \operatorname{tr}\big(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2}\big)$$

    Sums are kept in double precision, and added up over processes. Covariances need not have full rank, in which case
    the distance of torchmetrics falls below zero. The estimate is biased, and the more so the fewer images there are.
    If there are no more images than features, the covariance does not have full rank: use
    [`KID`][lightning_unlearn.KID] then. Values are comparable only if the features, the number of images, and their
    resizing and storage are the same.

    Args:
        features: Computes ``(B, D)`` for a batch and has ``D`` as its ``num_features``, such as
            [`PenultimateFeatures`][lightning_unlearn.PenultimateFeatures]. It gets images unchanged. By default the
            2048 features of Inception v3, whose weights torch-fidelity downloads; these take images with colours in
            [0, 1].
        reset_real_features: Whether ``reset`` forgets the real images too; without it, one reference serves many
            models.

    Raises:
        ImportError: If torch-fidelity is missing, but the features are Inception's.
        ValueError: If the number of features is unknown, there are fewer than two images of a kind, or one has NaN.

    Example:
        >>> identity = nn.Identity()
        >>> identity.num_features = 2
        >>> fid, square = FID(identity), torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> fid.update(square, real=True)
        >>> fid.update(square + torch.tensor([3.0, 4.0]), real=False)
        >>> fid.compute()
        tensor(25.)

    References:
        Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*,
        arXiv:1706.08500.
    """

    def __init__(self, features: nn.Module | None = None, reset_real_features: bool = True, **kwargs: Any) -> None:
        if features is not None and not isinstance(getattr(features, "num_features", None), int):
            raise ValueError(
                f"{type(features).__name__} does not say how many features it gives. Set its num_features, or wrap a "
                "classifier in PenultimateFeatures."
            )
        super().__init__(_features(features), reset_real_features, normalize=features is None, **kwargs)

    def update(self, imgs: Tensor, real: bool) -> None:
        """Count a batch of real or of generated images."""
        finite("images", imgs)
        super().update(imgs, real)

    def compute(self) -> Tensor:
        """The distance, a scalar."""
        counts = {"real": int(self.real_features_num_samples), "generated": int(self.fake_features_num_samples)}
        if min(counts.values()) < 2:
            refuse(
                self,
                f"FID needs two images of either kind at least, but got {counts['real']} real and "
                f"{counts['generated']} generated ones. Call update with real=True and with real=False.",
            )
        if min(counts.values()) <= len(self.real_features_sum):
            warnings.warn(
                f"FID of {counts['real']} real and {counts['generated']} generated images is biased: it needs more "
                f"than the {len(self.real_features_sum)} features. Take more images, or KID.",
                stacklevel=2,
            )
        real = _moments(self.real_features_sum, self.real_features_cov_sum, self.real_features_num_samples)
        fake = _moments(self.fake_features_sum, self.fake_features_cov_sum, self.fake_features_num_samples)
        return frechet_distance(*real, *fake).clamp(min=0).float()


class KID(KernelInceptionDistance):
    r"""Unbiased squared maximum mean discrepancy of features, for real and generated images.

    $$\frac{1}{m(m-1)}\sum_{i \ne j}\big(k(x_i, x_j) + k(y_i, y_j)\big) - \frac{2}{m^2}\sum_{i,j} k(x_i, y_j), \qquad
    k(x, y) = \Big(\frac{x^\top y}{D} + 1\Big)^3$$

    The result is the mean and standard deviation over random subsets of $m$ images. The estimate is unbiased for any
    number of images, so for equal distributions it is negative as often as positive. All features are kept in memory.

    Args:
        features: As for [`FID`][lightning_unlearn.FID], but need not say its ``num_features``.
        subsets: Number of subsets.
        subset_size: $m \ge 2$; at most the number of images of either kind.
        reset_real_features: As for FID.
        seed: Seed of the subsets; the global random numbers are left alone.

    Raises:
        ImportError: If torch-fidelity is missing, but the features are Inception's.
        ValueError: If there are fewer images of a kind than a subset has, a number is out of range, or an image has
            NaN.

    Example:
        >>> kid, square = KID(nn.Identity(), 1, 4), torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> kid.update(square, real=True)
        >>> kid.update(square, real=False)
        >>> kid.compute()[0]
        tensor(-1.0729)

    References:
        Bińkowski et al., *Demystifying MMD GANs*, arXiv:1801.01401.
    """

    def __init__(
        self,
        features: nn.Module | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
        reset_real_features: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        at_least("subsets", subsets, 1)
        at_least("subset_size", subset_size, 2, hint="no single image has an unbiased distance")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*save all extracted features")
            super().__init__(
                _features(features),
                subsets,
                subset_size,
                reset_real_features=reset_real_features,
                normalize=features is None,
                **kwargs,
            )
        self.seed = seed
        # Of one tensor a process: with one a batch, processes with unequal numbers of batches would wait for ever.
        for name in ("real_features", "fake_features"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, imgs: Tensor, real: bool) -> None:
        """Count a batch of real or of generated images."""
        finite("images", imgs)
        super().update(imgs, real)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the subsets, scalars."""
        # After a gather over processes the features of a kind are one tensor, else a list.
        real, generated = (sum(map(len, _listed(x))) for x in (self.real_features, self.fake_features))
        if min(real, generated) < self.subset_size:
            refuse(
                self,
                f"KID draws subsets of {self.subset_size} images, but got {real} real and {generated} generated ones. "
                f"Take more images, or a subset_size of {min(real, generated)} or less.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return super().compute()


def _moments(total: Tensor, products: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    mean = total / count
    return mean, (products - count * mean.outer(mean)) / (count - 1)


def _features(features: nn.Module | None) -> nn.Module | int:
    if features is None:
        if find_spec("torch_fidelity") is None:
            raise ImportError(
                "Features of Inception v3 need torch-fidelity: pip install torch-fidelity. Or pass features, such as "
                "PenultimateFeatures(classifier)."
            )
        return 2048
    if not isinstance(features, nn.Module):
        raise TypeError(f"features must be a torch module, but got {type(features).__name__}.")
    return features


def _listed(features: list[Tensor] | Tensor) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else features
