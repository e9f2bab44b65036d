"""Reconstruction metrics that keep a value for each image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.functional.reconstruction.quality import (
    complex_psnr,
    hfen,
    magnitude_psnr,
    magnitude_ssim,
    nmse,
)

__all__ = ["HFEN", "NMSE", "ComplexPSNR", "ImageQuality", "MagnitudePSNR", "MagnitudeSSIM"]


class ImageQuality(IndexedMetric):
    """Base class of mean image metrics whose values can be compared between methods image by image.

    Each image counts once, even if a distributed sampler gives it to two processes. NaN values, as from a diverged
    network, are included in the mean.

    A subclass implements ``measure``.

    Args:
        **kwargs: Options of ``torchmetrics.Metric``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @abstractmethod
    def measure(self, image: Tensor, target: Tensor) -> Tensor:
        """One value for each image of a batch, shape ``(B,)``."""

    def update(self, image: Tensor, target: Tensor, index: Tensor | Sequence[int] | None = None) -> None:
        """Measure a batch.

        Args:
            image: Reconstructions, real or complex, shape ``(B, H, W)``.
            target: References of the same shape.
            index: Row numbers, shape ``(B,)``, which identify the images; needed with several processes.
        """
        self.record(index, value=self.measure(image.detach(), target.detach()))

    def compute(self) -> Tensor:
        """Mean over the images, a scalar.

        Raises:
            ValueError: If there was no image.
        """
        return self._each()["value"].mean()

    def per_image(self) -> dict[int, float]:
        """The value of each image of all processes by its row number, for paired differences between two methods.

        With several processes, all of them must call it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=not self._is_synced):
            rows = self._each()
        return dict(zip(rows["index"].long().tolist(), rows["value"].tolist(), strict=True))

    def _each(self) -> dict[str, Tensor]:
        rows = self.unique_rows()
        if not len(rows["value"]):
            raise ValueError(f"{type(self).__name__} has seen no images. Call update with some first.")
        return rows


class ComplexPSNR(ImageQuality):
    """Mean peak signal-to-noise ratio of complex images, in dB, as measured by the code of SMUG.

    See [`complex_psnr`][lightning_unlearn.functional.complex_psnr].

    Args:
        **kwargs: Options of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> metric = ComplexPSNR()
        >>> metric.update(torch.full((1, 4, 4), 1 + 0.1j), torch.ones(1, 4, 4))
        >>> metric.compute()
        tensor(20.0000, dtype=torch.float64)
    """

    higher_is_better = True

    def measure(self, image: Tensor, target: Tensor) -> Tensor:
        return complex_psnr(image, target)


class MagnitudePSNR(ImageQuality):
    """Mean peak signal-to-noise ratio of magnitude images, in dB.

    See [`magnitude_psnr`][lightning_unlearn.functional.magnitude_psnr].

    Args:
        **kwargs: Options of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> metric = MagnitudePSNR()
        >>> metric.update(torch.full((2, 4, 4), 0.9j), torch.ones(2, 4, 4), index=[3, 5])
        >>> sorted(metric.per_image())
        [3, 5]
    """

    higher_is_better = True

    def measure(self, image: Tensor, target: Tensor) -> Tensor:
        return magnitude_psnr(image, target)


class MagnitudeSSIM(ImageQuality):
    """Mean structural similarity of magnitude images.

    See [`magnitude_ssim`][lightning_unlearn.functional.magnitude_ssim].

    Args:
        window: Side of the uniform windows, odd; 7 as in fastMRI.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If the side is less than 3.
    """

    higher_is_better = True

    def __init__(self, window: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = at_least("window", window, 3)

    def measure(self, image: Tensor, target: Tensor) -> Tensor:
        return magnitude_ssim(image, target, self.window)


class NMSE(ImageQuality):
    """Mean normalised squared error of complex images.

    See [`nmse`][lightning_unlearn.functional.nmse].

    Args:
        **kwargs: Options of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> metric = NMSE()
        >>> metric.update(torch.full((1, 4, 4), 0.9), torch.ones(1, 4, 4))
        >>> metric.compute()
        tensor(0.0100, dtype=torch.float64)
    """

    higher_is_better = False

    def measure(self, image: Tensor, target: Tensor) -> Tensor:
        return nmse(image, target)


class HFEN(ImageQuality):
    """Mean high-frequency error norm.

    See [`hfen`][lightning_unlearn.functional.hfen].

    Args:
        sigma: Width of the Gaussian, in pixels.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If the width is not positive.
    """

    higher_is_better = False

    def __init__(self, sigma: float = 1.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigma = above("sigma", sigma, 0)

    def measure(self, image: Tensor, target: Tensor) -> Tensor:
        return hfen(image, target, self.sigma)
