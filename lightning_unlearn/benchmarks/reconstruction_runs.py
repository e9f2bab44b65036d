"""Runs of the reconstruction benchmark: pre-train a denoiser, train an unrolled network from it, measure it."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.benchmarks.grid import Cell, Outcome
from lightning_unlearn.benchmarks.reconstruction_settings import Conditions, Recipe, Setting
from lightning_unlearn.benchmarks.runs import quiet_libraries, trainer
from lightning_unlearn.core.files import replacing
from lightning_unlearn.core.lightning import LightningModule, seed_everything
from lightning_unlearn.reconstruction.attack import MeasurementPGD
from lightning_unlearn.reconstruction.data.brain_slices import BrainRows, BrainSlices
from lightning_unlearn.reconstruction.data.sampling import ColumnSampling
from lightning_unlearn.reconstruction.denoisers import ConvDenoiser
from lightning_unlearn.reconstruction.lit_reconstruction import LitReconstruction, Mode, NoiseOptions
from lightning_unlearn.reconstruction.modl import MoDL
from lightning_unlearn.reconstruction.operators import MultiCoilMRI
from lightning_unlearn.reconstruction.pretrain import LitDenoiser
from lightning_unlearn.reconstruction.sweep import RobustnessSweep
from lightning_unlearn.reconstruction.sweep_results import ShownImage

__all__ = [
    "MEASURES",
    "DenoiserCell",
    "MeasureCell",
    "NetworkCell",
    "Quality",
    "ZeroFilledCell",
    "build",
    "fit_denoiser",
    "fit_network",
    "measure",
    "measure_zero_filled",
    "measured",
    "train_denoiser",
    "train_network",
    "zero_filled",
]

Quality = dict[str, list[float]]
"""A number of each image by the measure."""

MEASURES = {"psnr": "complex_psnr", "ssim": "ssim", "nmse": "nmse"}
"""What is reported, by the name that the sweep gives it."""

_PRETRAINING = 1000  # added to the seed: a denoiser sees other rows than the network it becomes part of
_TEST = 0  # seed of validation and test rows: all networks are measured on the same


@dataclass(frozen=True, kw_only=True)
class DenoiserCell(Cell):
    """A denoiser that is pre-trained, from which all networks of the seed start."""

    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class NetworkCell(Cell):
    """A network trained with a setting of a method, from a denoiser in a file that is named by its hash."""

    recipe: Recipe
    conditions: Conditions
    mode: Mode
    setting: Setting
    steps: int
    denoiser: str


@dataclass(frozen=True, kw_only=True)
class MeasureCell(Cell):
    """A trained network on the test images."""

    recipe: Recipe
    conditions: Conditions
    mode: Mode
    setting: Setting
    weights: str


@dataclass(frozen=True, kw_only=True)
class ZeroFilledCell(Cell):
    """The test images without a network."""

    recipe: Recipe
    conditions: Conditions


def train_denoiser(cell: DenoiserCell, folder: Path) -> Outcome:
    """Pre-train a denoiser, and keep its weights."""
    quiet_libraries()
    module = fit_denoiser(cell.recipe, cell.seed)
    return {"files": [_save(module.denoiser, folder)]}


def train_network(cell: NetworkCell, folder: Path) -> Outcome:
    """Train a network, keep its weights, and measure it on validation images, clean and under attack."""
    quiet_libraries()
    start = time.process_time()
    module = fit_network(cell.recipe, cell.mode, cell.setting, cell.steps, cell.seed, str(folder / cell.denoiser))
    cost = {"seconds": time.process_time() - start, "steps": cell.steps}
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        return {"error": f"weights that are not finite after {cell.steps} steps with {cell.setting}"}
    judged = build(cell.recipe, cell.mode, cell.setting, cell.conditions.samples, cell.seed)
    judged.load_state_dict(module.state_dict())
    found, _ = measured(
        judged, cell.recipe, "val", cell.conditions.validation_rows, cell.conditions, folder / f"sweeps/{cell.key}"
    )
    return {"files": [_save(module, folder)], "validation": found, **cost}


def measure(cell: MeasureCell, folder: Path) -> Outcome:
    """Measure a trained network under all conditions, and keep an image of it."""
    quiet_libraries()
    module = build(cell.recipe, cell.mode, cell.setting, cell.conditions.samples, cell.seed)
    module.load_state_dict(torch.load(folder / cell.weights, weights_only=True))
    sweep = f"sweeps/{cell.key}"
    found, shown = measured(module, cell.recipe, "test", cell.conditions.rows, cell.conditions, folder / sweep)
    with replacing(folder / sweep / "images.pt") as part:
        torch.save({image.condition.name: image._asdict() | {"condition": ""} for image in shown}, part)
    return {"test": found, "files": [f"{sweep}/{name}" for name in ("robustness.csv", "images.pt")]}


def measure_zero_filled(cell: ZeroFilledCell, folder: Path) -> Outcome:
    """Measure the zero-filled images."""
    quiet_libraries()
    return zero_filled(cell.recipe, cell.conditions, folder / f"sweeps/{cell.key}")


def zero_filled(recipe: Recipe, limits: Conditions, folder: Path) -> Outcome:
    """Quality of the zero-filled test images, on those conditions that do not need a network."""
    limits = replace(limits, unrolled_steps=())
    found, _ = measured(_ZeroFilled(), recipe, "test", limits.rows, limits, folder, eps=())
    return {"test": found}


class _ZeroFilled(LightningModule):
    """The reconstruction of no network."""

    def reconstruct(self, batch: dict[str, Tensor]) -> Tensor:
        return MultiCoilMRI(batch["maps"], batch["mask"]).A_adjoint(batch["kspace"])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The sweep does the measuring."""


def measured(
    module: LightningModule,
    recipe: Recipe,
    split: str,
    count: int,
    limits: Conditions,
    folder: Path,
    eps: Sequence[float] | None = None,
) -> tuple[dict[str, Quality], list[ShownImage]]:
    """Quality of each reconstruction of a split under all conditions, by the name of the condition.

    The rows are the same for all networks.

    Args:
        module: The network.
        recipe: The data.
        split: ``"val"`` or ``"test"``.
        count: Number of images.
        limits: The conditions.
        folder: Where the sweep writes its own files.
        eps: Radii of the attack, if not those of the conditions.

    Returns:
        The values, and the first image under the strongest condition of each kind.
    """
    sweep = RobustnessSweep(
        *(limits.eps if eps is None else eps, limits.noise, limits.rates, limits.unrolled_steps),
        *(limits.attacks(_TEST), _sampling(recipe)),
        dirpath=str(folder),
        seed=_TEST,
    )
    rows: Dataset = BrainRows(_data(recipe, count, _TEST), split, count, full=True)
    trainer([sweep]).test(module, DataLoader(rows, count), verbose=False)
    values = {
        condition.name: {name: [*sweep.results.values(condition, metric).values()] for name, metric in MEASURES.items()}
        for condition in sweep.results.conditions
    }
    return values, sweep.results.shown


def fit_denoiser(recipe: Recipe, seed: int) -> LitDenoiser:
    """Train a denoiser on targets alone."""
    seed_everything(seed, verbose=False)
    module = LitDenoiser(_denoiser(recipe), recipe.pretraining_sigma, lr=1e-3, seed=seed)
    _fit(module, recipe, recipe.pretraining_steps, 2 * recipe.batch_size, seed + _PRETRAINING)
    return module


def fit_network(
    recipe: Recipe, mode: Mode, setting: Setting, steps: int, seed: int, denoiser: str
) -> LitReconstruction:
    """Train a network from a pre-trained denoiser, by Adam with a learning rate that rises and falls once.

    Args:
        recipe: The data and the network.
        mode: How it is trained and smoothed.
        setting: What the mode can tune.
        steps: Updates.
        seed: Seed of the rows and the noise.
        denoiser: File of the denoiser's weights.
    """
    seed_everything(seed, verbose=False)
    module = build(recipe, mode, setting, recipe.samples, seed, denoiser)
    _fit(module, recipe, steps, recipe.batch_size, seed)
    return module


def build(
    recipe: Recipe, mode: Mode, setting: Setting, samples: int, seed: int, denoiser: str | None = None
) -> LitReconstruction:
    """The module of a mode and setting."""
    # Adam does not see the scale of a loss, so that the weight of one part is the inverse of that of the other; the
    # reconstruction keeps the weight 1, and clipping means the same for all methods.
    stability = 1 / setting.reconstruction_weight if setting.reconstruction_weight else 1.0
    adversary = MeasurementPGD(eps=setting.eps, steps=3, keep="last", seed=seed) if mode == "adversarial" else None
    return LitReconstruction(
        MoDL(_denoiser(recipe), recipe.unrolled_steps),
        mode,
        sigma=setting.sigma,
        n_samples=samples,
        noise=NoiseOptions(seed=seed),
        adversary=adversary,
        stability_weight=stability,
        denoiser_weights=denoiser,
        lr=setting.lr,
    )


def _denoiser(recipe: Recipe) -> nn.Module:
    # On a CPU, these narrow convolutions are up to twice as fast with the channels last.
    denoiser = ConvDenoiser(recipe.channels, recipe.depth)
    return denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _data(recipe: Recipe, batch_size: int, seed: int, train_rows: int = 1) -> BrainSlices:
    options: Any = {"sampling": _sampling(recipe), "train_rows": train_rows, "batch_size": batch_size, "seed": seed}
    return BrainSlices(recipe.voxel, coils=recipe.coils, **options)


def _sampling(recipe: Recipe) -> ColumnSampling:
    return ColumnSampling(recipe.acceleration)


def _fit(module: LitDenoiser | LitReconstruction, recipe: Recipe, steps: int, batch_size: int, seed: int) -> None:
    lr, trained = module.lr, list(module.parameters())

    def one_cycle() -> Any:
        optimizer = torch.optim.Adam(trained, lr=lr, betas=(0.5, 0.999))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module.configure_optimizers = one_cycle  # type: ignore[method-assign]
    run = trainer(max_steps=steps, gradient_clip_val=1.0)
    run.fit(module, _data(recipe, batch_size, seed, steps * batch_size).train_dataloader())


def _save(module: nn.Module, folder: Path) -> str:
    """Keep weights in a file that is named by what is in it."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    file = f"models/{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.pt"
    with replacing(folder / file) as part:
        part.write_bytes(buffer.getvalue())
    return file
