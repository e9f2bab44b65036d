"""Runs of the reconstruction benchmark: pre-train a denoiser, train an unrolled network from it, measure it."""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.benchmarks.grid import Cell, Outcome
from lightning_unlearn.benchmarks.reconstruction_conditions import Condition, conditions, measured, zero_filled
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
from lightning_unlearn.reconstruction.pretrain import LitDenoiser

__all__ = [
    "DenoiserCell", "MeasureCell", "NetworkCell", "ZeroFilledCell", "build", "fit_denoiser", "fit_network", "measure",
    "measure_zero_filled", "rows", "train_denoiser", "train_network",
]  # fmt: skip

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
    """A trained network on the test images; ``keeps`` are rows whose reconstructions are kept for the page."""

    recipe: Recipe
    conditions: Conditions
    mode: Mode
    setting: Setting
    weights: str
    keeps: tuple[int, ...] = ()


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
    measured_in = [Condition("clean"), Condition("attack", cell.conditions.middle)]
    loader = rows(cell.recipe, "val", cell.conditions.validation_rows)
    judged = build(cell.recipe, cell.mode, cell.setting, cell.conditions.samples, cell.seed)
    judged.load_state_dict(module.state_dict())
    found = measured(judged, loader, measured_in, cell.conditions.attack_steps, restarts=1)
    return {"files": [_save(module, folder)], "validation": found, **cost}


def measure(cell: MeasureCell, folder: Path) -> Outcome:
    """Measure a trained network under all conditions."""
    quiet_libraries()
    module = build(cell.recipe, cell.mode, cell.setting, cell.conditions.samples, cell.seed)
    module.load_state_dict(torch.load(folder / cell.weights, weights_only=True))
    keep: dict[str, Any] = {}
    loader = rows(cell.recipe, "test", cell.conditions.rows)
    limits = cell.conditions
    found = measured(
        module, loader, conditions(limits), limits.attack_steps, limits.restarts, _sampling(cell.recipe), keep
    )
    return {"test": found, **({"files": [_keep_images(keep, cell, folder)]} if cell.keeps else {})}


def measure_zero_filled(cell: ZeroFilledCell, folder: Path) -> Outcome:
    """Measure the zero-filled images, on those conditions that do not need a network."""
    loader = rows(cell.recipe, "test", cell.conditions.rows)
    kinds = [c for c in conditions(cell.conditions) if c.kind in ("clean", "noise", "rate")]
    return {"test": zero_filled(loader, kinds, _sampling(cell.recipe))}


def fit_denoiser(recipe: Recipe, seed: int) -> LitDenoiser:
    """Train a denoiser on targets alone."""
    seed_everything(seed, verbose=False)
    denoiser = ConvDenoiser(recipe.channels, recipe.depth)
    module = LitDenoiser(denoiser, recipe.pretraining_sigma, lr=1e-3, seed=seed)
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
    adversary = MeasurementPGD(eps=setting.eps, steps=3, seed=seed) if mode == "adversarial" else None
    return LitReconstruction(
        MoDL(ConvDenoiser(recipe.channels, recipe.depth), recipe.unrolling),
        mode,
        sigma=setting.sigma,
        n_samples=samples,
        noise=NoiseOptions(seed=seed),
        adversary=adversary,
        stability_weight=stability,
        denoiser_weights=denoiser,
        lr=setting.lr,
    )


def rows(recipe: Recipe, split: str, count: int) -> DataLoader:
    """Rows of validation or test with fully sampled k-space, the same for all networks."""
    dataset: Dataset = BrainRows(_data(recipe, recipe.batch_size, _TEST), split, count, full=True)
    return DataLoader(dataset, batch_size=count)


def _data(recipe: Recipe, batch_size: int, seed: int, train_rows: int = 1) -> BrainSlices:
    options: Any = {"sampling": _sampling(recipe), "train_rows": train_rows, "batch_size": batch_size, "seed": seed}
    return BrainSlices(recipe.voxel, coils=recipe.coils, **options)


def _sampling(recipe: Recipe) -> ColumnSampling:
    return ColumnSampling(recipe.acceleration)


def _fit(module: LightningModule, recipe: Recipe, steps: int, batch_size: int, seed: int) -> None:
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


def _keep_images(images: dict[str, Tensor], cell: MeasureCell, folder: Path) -> str:
    """Keep the reconstructions of some rows, clean and under the strongest attack."""
    file = f"images/{cell.key}.pt"
    names = ("target", "clean", Condition("attack", cell.conditions.eps[-1]).name)
    with replacing(folder / file) as part:
        torch.save({name: images[name][list(cell.keeps)] for name in names}, part)
    return file
