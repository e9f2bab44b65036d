"""Reconstruction quality on the sets of an evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.reconstruction.metrics.quality import NMSE, ComplexPSNR, ImageQuality, MagnitudeSSIM

__all__ = ["RMSE", "QualityOfSets"]


class RMSE(ImageQuality):
    r"""Mean root mean squared error of complex images, over real and imaginary parts.

    $$\sqrt{\frac{1}{2HW}\, \lVert \hat x - t \rVert_2^2}$$

    SMUG selects the checkpoint of a run that has the smallest value on validation images.

    Args:
        **kwargs: Options of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> metric = RMSE()
        >>> metric.update(torch.full((1, 4, 4), 0.1 + 0.1j), torch.zeros(1, 4, 4))
        >>> metric.compute()
        tensor(0.1000, dtype=torch.float64)
    """

    higher_is_better = False

    def measure(self, image: Tensor, target: Tensor) -> Tensor:
        return ((image - target).abs().square().mean((1, 2)) / 2).sqrt()


class QualityOfSets:
    """RMSE, PSNR, SSIM and NMSE on each validation or test set, counting each image once over all processes.

    Args:
        stage: ``"val"`` or ``"test"``.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._sets: dict[int, dict[str, ImageQuality]] = {}

    def update(self, image: Tensor, batch: dict[str, Tensor], number: int) -> None:
        """Measure a batch.

        Args:
            image: Reconstructions, shape ``(B, H, W)``.
            batch: Batch with their ``target`` and ``index``.
            number: Index of the loader.
        """
        if number not in self._sets:
            kinds: dict[str, ImageQuality] = {
                "rmse": RMSE(),
                "psnr": ComplexPSNR(),
                "ssim": MagnitudeSSIM(),
                "nmse": NMSE(),
            }
            self._sets[number] = {name: metric.to(image.device) for name, metric in kinds.items()}
        for metric in self._sets[number].values():
            metric.update(image, batch["target"], batch["index"])

    def log(self, module: LightningModule, loaders: Any) -> None:
        """Log ``<stage>/<set>_<metric>``, without the set if the loaders have no names, and reset."""
        for number, metrics in sorted(self._sets.items()):
            name = f"{list(loaders)[number]}_" if isinstance(loaders, dict) else ""
            values = {f"{self.stage}/{name}{key}": metric.compute().float() for key, metric in metrics.items()}
            if not name and len(self._sets) > 1:
                values = {f"{key}/{number}": value for key, value in values.items()}
            # Values are already equal on all processes, but Lightning asks for this flag.
            module.log_dict(values, sync_dist=module.trainer.world_size > 1, prog_bar=self.stage == "val")
        self._sets = {}
