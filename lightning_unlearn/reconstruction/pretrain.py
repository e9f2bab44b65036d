"""LightningModule that pre-trains the denoiser of an unrolled network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_unlearn.core.checks import above, one_of
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.resume import record_class
from lightning_unlearn.functional.reconstruction.stability import complex_mse
from lightning_unlearn.reconstruction.evaluation import QualityOfSets
from lightning_unlearn.reconstruction.recipe import Schedule, optimizers, shard
from lightning_unlearn.reconstruction.unrolled import apply_denoiser
from lightning_unlearn.smoothing.gaussian import GaussianSmoother

__all__ = ["LitDenoiser"]

_TRAINING, _EVALUATION = 0, 1


class LitDenoiser(LightningModule):
    r"""LightningModule of a denoiser that learns to remove Gaussian noise, the first stage of SMUG's training.

    $$\mathbb{E}_{t, \eta}\, \mathrm{MSE}\big(D_\theta(t + \eta),\, t\big), \qquad \eta \sim \mathcal{N}(0, \sigma^2)$$

    [`LitReconstruction`][lightning_unlearn.LitReconstruction] takes its checkpoint as ``denoiser_weights``.

    Args:
        denoiser: Maps images (N, 2, H, W), whose channels are real and imaginary part, to the same shape. To load a
            checkpoint, pass it again: ``load_from_checkpoint(path, denoiser=...)``.
        sigma: Standard deviation of the noise on each part, in units of the images.
        lr: Learning rate of Adam.
        schedule: ``"constant"``, or ``"linear"``: constant for 20 epochs, then falling to 0.
        seed: Seed of the noise.

    Raises:
        ValueError: If a number is not positive, or the schedule is unknown.

    Example:
        >>> from lightning_unlearn import ConvDenoiser
        >>> module = LitDenoiser(ConvDenoiser(channels=8, depth=3), sigma=0.05)

    References:
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """

    def __init__(
        self, denoiser: nn.Module, sigma: float = 0.01, lr: float = 1e-4, schedule: Schedule = "constant", seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["denoiser"])
        self.denoiser = denoiser
        self.smoother = GaussianSmoother(above("sigma", sigma, 0), n_samples=1, seed=seed)
        self.lr, self.schedule = above("lr", lr, 0), one_of("schedule", schedule, Schedule)
        self._quality = {stage: QualityOfSets(stage) for stage in ("val", "test")}

    def forward(self, image: Tensor) -> Tensor:
        """Denoise complex images of shape (B, H, W)."""
        return apply_denoiser(self.denoiser, image)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean squared error of the denoised targets."""
        loss = complex_mse(self._restored(batch, _TRAINING, self.global_step), batch["target"])
        self.log("train/loss", loss, batch_size=len(batch["target"]), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Quality of denoised images, with the same noise each time."""
        self._quality["val"].update(self._restored(batch, _EVALUATION), batch, dataloader_idx)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Quality of denoised test images, with the same noise each time."""
        self._quality["test"].update(self._restored(batch, _EVALUATION), batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/rmse``, ``val/psnr``, ``val/ssim`` and ``val/nmse``."""
        self._quality["val"].log(self, self.trainer.val_dataloaders)

    def on_test_epoch_end(self) -> None:
        """Log the same metrics as ``test/...``."""
        self._quality["test"].log(self, self.trainer.test_dataloaders)

    def configure_model(self) -> None:
        """Shard the denoiser under ``ModelParallelStrategy``."""
        shard(self, self.denoiser)

    def configure_optimizers(self) -> Any:
        """Adam with the schedule."""
        return optimizers(self, self.lr, self.schedule)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the module's class."""
        record_class(self, checkpoint)

    def _restored(self, batch: dict[str, Tensor], *key: int) -> Tensor:
        target = batch["target"]
        noise = self.smoother.noise(target, key, batch["index"])[0]
        return self(target + noise)
