"""LightningModule of an unrolled network for MRI reconstruction: plain, smoothed, or adversarially trained."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.resume import record_class
from lightning_unlearn.functional.reconstruction.stability import complex_mse, unrolled_stability
from lightning_unlearn.reconstruction.attack import MeasurementPGD
from lightning_unlearn.reconstruction.evaluation import QualityOfSets
from lightning_unlearn.reconstruction.ista_net import ISTANet
from lightning_unlearn.reconstruction.modes import OF_WHOLE, Mode, NoiseOptions, check_parts, smoothing_of, target_of
from lightning_unlearn.reconstruction.operators import LinearOperator, MultiCoilMRI
from lightning_unlearn.reconstruction.recipe import Schedule, load_denoiser, optimizers, shard
from lightning_unlearn.reconstruction.smoothed import Smoothed, Smoothing, SmoothingMode, reconstruct
from lightning_unlearn.reconstruction.stability_targets import (
    StabilityTarget,
    after_data_consistency,
    end_to_end_target,
    step_targets,
)
from lightning_unlearn.reconstruction.unrolled import UnrolledNetwork
from lightning_unlearn.reconstruction.weight_encoder import WeightEncoder

__all__ = ["LitReconstruction"]

Batch = dict[str, Tensor]

_TRAINING, _EVALUATION = 0, 1
_SYMMETRY_WEIGHT = 0.01


class LitReconstruction(LightningModule):
    r"""LightningModule of an unrolled network that learns to reconstruct images from k-space.

    $$\mathcal{L} = \lambda_\ell\, \mathrm{MSE}(x_N, t) + w \sum_{n=0}^{N-1} \mathbb{E}_\eta\, \mathrm{MSE}\big(
      D_\theta(x_n + \eta),\, t_n\big)$$

    $x_N$ is the reconstruction of the ``mode``. Only smoothed denoisers have the second term, unrolled stability. A
    batch is a dict with ``kspace`` (B, C, H, W), ``maps`` (B or 1, C, H, W), ``mask`` (B or 1, 1, 1, W), ``target`` (B,
    H, W) and ``index`` (B,), the numbers of the images in their data set.

    The noise of an image depends only on the seed, the training step and its ``index``: two processes draw the same as
    one, and a resumed run the same as an uninterrupted one. Every evaluation has the same noise. With
    ``precision="bf16-mixed"`` the denoiser is computed in bf16, and noise, data consistency and losses in fp32.
    For [`ISTANet`][lightning_unlearn.ISTANet] the loss also includes 0.01 times its ``symmetry_loss``, as in its paper.

    The Trainer clips gradients: the paper's ``weighted_smug`` has ``gradient_clip_val=1.0``. The paper selects the
    checkpoint as ``ModelCheckpoint(monitor="val/rmse")`` does.

    Args:
        network: The network, such as [`MoDL`][lightning_unlearn.MoDL]. To load a checkpoint, pass it again:
            ``load_from_checkpoint(path, network=...)``.
        mode: Kind of smoothing in training and evaluation, see [`Smoothing`][lightning_unlearn.Smoothing];
            ``"adversarial"`` is the plain network, trained on measurements with the worst perturbation that the
            ``adversary`` finds.
        sigma: Standard deviation of the noise on real and imaginary parts, in units of the images.
        n_samples: Number of samples per mean.
        noise: Further options of the noise.
        encoder: Network that gives the weights of ``"weighted_smug"``; by default that of the paper. It is trained with
            the network.
        adversary: The attack of ``"adversarial"``; by default 3 steps of PGD with ``eps=0.02`` on k-space.
        stability_target: Target $t_n$ of the denoised images: ``"label_denoised"`` (the default), which is
            $D_\theta(t)$ with gradient; ``"label"``, $t$; ``"self"``, $D_\theta(x_n)$; ``"frozen"``,
            $D_{\theta_0}(x_n)$ with the weights that the network has at construction. For ``"rs_e2e"`` there is no such
            term by default; with ``"label"`` or ``"frozen"`` the target of each noisy reconstruction is $t$ or
            $R_{\theta_0}(y)$. For ``"smug_v0"`` samples and targets are taken after data consistency.
        stability_weight: Weight $w$ of unrolled stability.
        reconstruction_weight: Weight $\lambda_\ell$ of the image. With 0 and ``stability_target="frozen"``,
            ``"rs_e2e_image"`` has the loss of the first version of SMUG.
        denoiser_weights: Checkpoint of a [`LitDenoiser`][lightning_unlearn.LitDenoiser] that initializes the network's
            denoiser.
        lr: Learning rate of Adam.
        schedule: ``"constant"``, or ``"linear"``: constant for 20 epochs (30 for ``"vanilla"`` and ``"adversarial"``),
            then falling to 0. A scheduler given on the command line replaces it.

    Raises:
        ValueError: If a number is out of range, a name is unknown, or an argument does not belong to the mode.

    Example:
        >>> from lightning_unlearn import ConvDenoiser, MoDL
        >>> module = LitReconstruction(MoDL(ConvDenoiser(channels=8, depth=3), steps=4), sigma=0.05, n_samples=4)

    References:
        Li et al., *SMUG: Towards Robust MRI Reconstruction by Smoothed Unrolling*, arXiv:2303.12735;
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """

    def __init__(
        self,
        network: UnrolledNetwork,
        mode: Mode = "smug",
        sigma: float = 0.01,
        n_samples: int = 10,
        noise: NoiseOptions | dict[str, Any] | None = None,
        encoder: WeightEncoder | None = None,
        adversary: MeasurementPGD | None = None,
        stability_target: StabilityTarget | None = None,
        stability_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        denoiser_weights: str | None = None,
        lr: float = 1e-4,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__()
        noise = NoiseOptions(**noise) if isinstance(noise, dict) else noise or NoiseOptions()
        # The weights are in the checkpoint, and objects could not be loaded with weights_only=True.
        self.save_hyperparameters(ignore=["network", "encoder", "adversary", "noise", "denoiser_weights"])
        self.save_hyperparameters({"noise": asdict(noise)})
        self.mode = one_of("mode", mode, Mode)
        self.stability_target = target_of(mode, stability_target)
        self.stability_weight = at_least("stability_weight", stability_weight, 0)
        self.reconstruction_weight = at_least("reconstruction_weight", reconstruction_weight, 0)
        self.lr, self.schedule = above("lr", lr, 0), one_of("schedule", schedule, Schedule)
        check_parts(mode, encoder, adversary)
        self.network = network
        if denoiser_weights is not None:
            load_denoiser(network.denoiser, denoiser_weights)
        frozen = self.stability_target == "frozen"
        self.reference = deepcopy(network).requires_grad_(False) if frozen else None
        self.encoder = (encoder or WeightEncoder()) if mode == "weighted_smug" else None
        self.adversary = (
            (adversary or MeasurementPGD(eps=0.02, steps=3, keep="last")) if mode == "adversarial" else None
        )
        self.smoothing = smoothing_of(mode, sigma, n_samples, noise, self.encoder)
        self._quality = {stage: QualityOfSets(stage) for stage in ("val", "test")}

    def operator(self, batch: Batch) -> LinearOperator:
        """The operator of a batch's measurements; a subclass may use another."""
        return MultiCoilMRI(batch["maps"], batch["mask"])

    def forward(self, batch: Batch) -> Tensor:
        """The reconstructions of a batch, see `reconstruct`."""
        return self.reconstruct(batch)

    def reconstruct(
        self,
        batch: Batch,
        steps: int | None = None,
        mode: SmoothingMode | None = None,
        key: Sequence[int] = (_EVALUATION,),
    ) -> Tensor:
        """Reconstruct images.

        Args:
            batch: A batch with ``kspace``, ``maps``, ``mask`` and ``index``.
            steps: Number of steps; by default that of the network.
            mode: ``"vanilla"`` for the network without smoothing, or another mode that needs only noise.
            key: Determines the noise; by default that of every evaluation.

        Returns:
            Complex, shape (B, H, W).
        """
        smoothing = self.smoothing
        if mode is not None and mode != smoothing.mode:
            smoothing = replace(smoothing, mode=mode, weighting=None)
        return self._run(batch, self.operator(batch), smoothing, key, steps).image

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, logged with its parts as ``train/loss``, ``train/mse`` and ``train/stability``."""
        if self.adversary is not None:
            batch = self.adversary.attack(self, batch, (self.global_step,)).batch
        operator, target = self.operator(batch), batch["target"]
        found = self._run(batch, operator, self.smoothing, (_TRAINING, self.global_step))
        parts = {"mse": complex_mse(found.image, target)}
        loss = self.reconstruction_weight * parts["mse"]
        if self.stability_target is not None and self.stability_weight:
            targets = self._targets(found, operator, batch["kspace"], target)
            parts["stability"] = unrolled_stability(found.samples, targets)
            loss = loss + self.stability_weight * parts["stability"]
        if isinstance(self.network, ISTANet):
            parts["symmetry"] = self.network.symmetry_loss(found.states)
            loss = loss + _SYMMETRY_WEIGHT * parts["symmetry"]
        logged = {f"train/{name}": value for name, value in ({"loss": loss} | parts).items()}
        self.log_dict(logged, batch_size=len(target), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Quality of the reconstructions of each set."""
        self._quality["val"].update(self.reconstruct(batch), batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Quality of the reconstructions of each test set."""
        self._quality["test"].update(self.reconstruct(batch), batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/rmse``, ``val/psnr``, ``val/ssim`` and ``val/nmse``; with named sets, ``val/<set>_rmse``."""
        self._quality["val"].log(self, self.trainer.val_dataloaders)

    def on_test_epoch_end(self) -> None:
        """Log the same metrics as ``test/...``."""
        self._quality["test"].log(self, self.trainer.test_dataloaders)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """For each image, its ``index`` and its magnitude as ``image``, (3, H, W) in [0, 1]."""
        images = self.reconstruct(batch).abs().clamp(max=1).cpu()
        indices = batch["index"].tolist()
        return [{"index": i, "image": x.expand(3, *x.shape)} for i, x in zip(indices, images, strict=True)]

    def configure_model(self) -> None:
        """Shard the denoiser under ``ModelParallelStrategy``."""
        shard(self, self.network.denoiser, self.encoder)

    def configure_optimizers(self) -> Any:
        """Adam with the schedule."""
        plain = self.smoothing.mode == "vanilla"
        return optimizers(self, self.lr, self.schedule, *((30, 0) if plain else (20, 20)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the module's class."""
        record_class(self, checkpoint)

    def _run(
        self, batch: Batch, operator: LinearOperator, smoothing: Smoothing, key: Sequence[int], steps: int | None = None
    ) -> Smoothed:
        return reconstruct(self.network, operator, batch["kspace"], smoothing, key, batch["index"], steps)

    def _targets(self, found: Smoothed, operator: LinearOperator, kspace: Tensor, target: Tensor) -> list[Tensor]:
        assert self.stability_target is not None
        if self.mode in OF_WHOLE:
            return [end_to_end_target(self.stability_target, self.reference, operator, kspace, target)]
        targets = step_targets(self.stability_target, self.network, self.reference, found, target)
        if self.mode == "smug_v0":
            return after_data_consistency(targets, self.network, operator, kspace)
        return targets
