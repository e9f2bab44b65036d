"""One batch of a robustness sweep: changed measurements and the quality of their reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.functional.reconstruction.quality import complex_psnr, magnitude_psnr, magnitude_ssim, nmse
from lightning_unlearn.functional.smoothing.gaussian import gaussian_noise
from lightning_unlearn.reconstruction.data.sampling import ColumnSampling
from lightning_unlearn.reconstruction.operators import MultiCoilMRI
from lightning_unlearn.reconstruction.reconstructor import Reconstructor
from lightning_unlearn.reconstruction.sweep_results import METRICS, ShownImage, SweepCondition, SweepRow

__all__ = ["SweepBatch", "UnableError"]

_NOISE = 3  # random stream of the noise


class UnableError(Exception):
    """Raised for a condition that the module or the batch does not support."""


class SweepBatch:
    """A batch to reconstruct under several conditions.

    Args:
        victim: Calls the module.
        module: The module.
        batch: The batch.
        number: Index of its loader.

    Raises:
        TypeError: If the batch lacks an entry that is measured.
    """

    def __init__(self, victim: Reconstructor, module: nn.Module, batch: Any, number: int) -> None:
        missing = [n for n in ("kspace", "target", "index") if not isinstance(batch, Mapping) or n not in batch]
        if missing:
            has = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise TypeError(
                f"RobustnessSweep reads batches that are dicts with kspace, target and index, but this one has {has}. "
                "BrainSlices and FastMRIFolder make such batches."
            )
        self.victim, self.module, self.batch, self.number = victim, module, batch, number
        self.rows_of_set = batch["index"].tolist()

    def reconstruct(self, batch: Mapping[str, Any]) -> Tensor:
        """The reconstructions of a changed batch, shape ``(B, H, W)``."""
        return self.victim(batch)

    def with_steps(self, steps: int) -> Tensor:
        """The reconstructions with another number of unrolled steps.

        Raises:
            UnableError: If the network does not support this number of steps.
        """
        try:
            return self.victim(self.batch, steps=steps)
        except ValueError as error:
            raise UnableError(str(error).rstrip(".")) from error

    def noisy(self, sigma: float, seed: int) -> dict[str, Any]:
        """The batch with Gaussian noise on its measurements."""
        kspace = self.batch["kspace"]
        noise = gaussian_noise(kspace, 1, (seed, _NOISE, self.number), self.rows_of_set)[0]
        return {**self.batch, "kspace": kspace + sigma * noise * self.batch.get("mask", 1)}

    def sampled(self, sampling: ColumnSampling) -> dict[str, Any]:
        """The batch measured through masks of another kind.

        Raises:
            UnableError: If fully sampled measurements are not available, or the masks can't be made.
        """
        if not {"maps", "mask"} <= self.batch.keys():
            raise UnableError("the batch has no maps and mask, as those of multi-coil MRI have")
        kspace = self.batch.get("full_kspace")
        if kspace is None:
            everything = torch.ones_like(self.batch["mask"])
            kspace = MultiCoilMRI(self.batch["maps"], everything).A(self.batch["target"])
        width = kspace.shape[-1]
        try:
            masks = [sampling(width, row) for row in self.rows_of_set]
        except ValueError as error:
            raise UnableError(str(error).rstrip(".")) from error
        mask = torch.stack(masks)[:, None, None].to(kspace.device)
        return {**self.batch, "kspace": kspace * mask, "mask": mask}

    def rows(self, condition: SweepCondition, image: Tensor) -> list[SweepRow]:
        """The quality of each reconstruction."""
        functions = {"psnr": magnitude_psnr, "ssim": magnitude_ssim, "nmse": nmse, "complex_psnr": complex_psnr}
        found = [functions[name](image, self.batch["target"]).tolist() for name in METRICS]
        return [
            SweepRow(*condition, self.number, index, *values)
            for index, *values in zip(self.rows_of_set, *found, strict=True)
        ]

    def shown(
        self, condition: SweepCondition, changed: Mapping[str, Any], image: Tensor, limit: int
    ) -> list[ShownImage]:
        """Images to plot: those of the first images of the set that are in this batch."""
        chosen = [place for place, index in enumerate(self.rows_of_set) if index < limit]
        if not chosen:
            return []
        target = self.batch["target"]
        zero_filled = self.victim.operator(changed).A_adjoint(changed["kspace"])
        pictures = [x.abs()[chosen].float().cpu() for x in (target, zero_filled, image, image - target)]
        return [
            ShownImage(condition, (self.number, self.rows_of_set[place]), *images)
            for place, *images in zip(chosen, *pictures, strict=True)
        ]
