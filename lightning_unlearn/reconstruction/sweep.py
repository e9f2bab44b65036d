"""Robustness sweep: reconstruction quality under growing perturbations and changed scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.distributed import gather_objects
from lightning_unlearn.core.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_unlearn.core.progress import progress
from lightning_unlearn.reconstruction.attack import MeasurementPGD
from lightning_unlearn.reconstruction.data.sampling import ColumnSampling
from lightning_unlearn.reconstruction.reconstructor import Reconstructor
from lightning_unlearn.reconstruction.sweep_batch import SweepBatch, UnableError
from lightning_unlearn.reconstruction.sweep_results import SweepCondition, SweepResults

__all__ = ["RobustnessSweep"]

Batch = Mapping[str, Any]


class RobustnessSweep(Callback):
    r"""Sweep of reconstruction quality over perturbations and changed scans, in ``trainer.test`` or ``validate``.

    Each image is reconstructed

    - unchanged (``clean``);
    - with the worst perturbation that the ``attack`` finds for each radius ``eps`` (``attack``);
    - with Gaussian noise on the sampled k-space; for one image, only its scale changes (``noise``);
    - from masks of each acceleration rate (``acceleration``), applied to ``full_kspace`` of the batch or, if it has
      none, to that of the reference image;
    - with each number of unrolled steps (``steps``).

    Conditions that a module or a batch does not support are skipped, with a note. The quality of every image is
    written to ``robustness.csv``, means with their standard errors go to the loggers, and figures to both. The images
    are divided among the processes, and the first process writes. Files are replaced when the sweep ends; an
    interrupted sweep leaves the files of the previous one.

    The module needs a method ``reconstruct(batch) -> (B, H, W)``, which takes ``steps=`` if other numbers of steps are
    measured; batches are dicts with ``kspace``, ``maps``, ``mask``, ``target`` and ``index``.

    Args:
        eps: Radii of the attack.
        noise: Standard deviations of the noise, in real and imaginary parts.
        rates: Acceleration rates.
        steps: Numbers of unrolled steps.
        attack: The attack; its own ``eps`` is ignored.
        sampling: Kind of masks; its own acceleration is ignored.
        images: Number of images per set that are plotted, under the strongest condition of each kind.
        dirpath: Folder for the files; by default ``robustness`` in the logger's folder.
        seed: Seed of the noise.

    Raises:
        ValueError: If a number is out of range, or there is nothing to measure.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> sweep = RobustnessSweep(eps=[0.02, 0.05], noise=[0.02, 0.05], rates=[2, 4, 8], steps=[4, 8, 16])
        >>> trainer = Trainer(callbacks=[sweep], logger=False, accelerator="cpu")

    References:
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """

    def __init__(
        self,
        eps: Sequence[float] = (0.01, 0.02, 0.04),
        noise: Sequence[float] = (0.01, 0.02, 0.04),
        rates: Sequence[float] = (2, 4, 6, 8),
        steps: Sequence[int] = (1, 2, 4, 8, 16),
        attack: MeasurementPGD | None = None,
        sampling: ColumnSampling | None = None,
        images: int = 1,
        dirpath: str | None = None,
        seed: int = 0,
    ) -> None:
        self.eps, self.noise = ([above(n, v, 0) for v in given] for n, given in (("eps", eps), ("noise", noise)))
        self.rates, self.steps = [at_least("rates", r, 1) for r in rates], [at_least("steps", n, 1) for n in steps]
        self.attack = MeasurementPGD() if attack is None else attack
        if self.attack.keep == "last":
            raise ValueError("The sweep's attack reports the worst perturbation: give it keep='worst'.")
        self.sampling = ColumnSampling() if sampling is None else sampling
        self.images, self.dirpath, self.seed = at_least("images", images, 0), dirpath, seed
        self.results = SweepResults()
        """What the last sweep has found; of all processes when it has ended."""
        kinds = (("attack", self.eps), ("noise", self.noise), ("acceleration", self.rates), ("steps", self.steps))
        self._conditions = [SweepCondition("clean", 0.0)]
        self._conditions += [
            SweepCondition(kind, float(value)) for kind, values in kinds for value in sorted(set(values))
        ]
        self._left_out: set[SweepCondition] = set()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a sweep, and report what the module does not support."""
        self.results, self._left_out = SweepResults(), set()
        victim, name = Reconstructor(pl_module, self.attack.base), type(pl_module).__name__
        if not victim.has_steps:
            self._leave_out("steps", f"{name}.reconstruct takes no steps=")
        if self.attack.surrogate != "smoothed" and not victim.has_base:
            self._leave_out("attack", f"{name}.reconstruct takes no mode=, which {self.attack.surrogate!r} needs")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Reconstruct a batch under every condition."""
        run = SweepBatch(Reconstructor(pl_module, self.attack.base), pl_module, batch, dataloader_idx)
        conditions = [condition for condition in self._conditions if condition not in self._left_out]
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for condition in progress(conditions, f"RobustnessSweep: batch {batch_idx + 1}"):
                try:
                    changed, image = self._reconstructed(run, condition)
                except UnableError as reason:
                    self._leave_out(condition, str(reason))
                    continue
                self.results.rows += run.rows(condition, image)
                if condition in self._drawn:
                    self.results.shown += run.shown(condition, changed, image, self.images)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the results, write them and log them."""
        self.results = SweepResults.merged(gather_objects(self.results))
        folder = Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "robustness")
        if not self.results.rows:
            raise MisconfigurationException("RobustnessSweep saw no batch. Give the loader some rows.")
        metrics = {f"robustness/{name}": value for name, value in self.results.metrics().items()}
        # Values are already equal on all processes, but Lightning asks for this flag.
        pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)
        if trainer.is_global_zero:
            self.results.write(folder)
            for logger in trainer.loggers:
                self.results.show(logger, trainer.global_step)
            rank_zero_info(f"RobustnessSweep: {len(self.results.rows)} reconstructions are in {folder}.")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a sweep in ``trainer.validate``; validation during training has none."""
        if trainer.state.fn == "validate":
            self.on_test_start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Reconstruct a batch under every condition in ``trainer.validate``."""
        if trainer.state.fn == "validate":
            self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather, write and log the results in ``trainer.validate``."""
        if trainer.state.fn == "validate":
            self.on_test_epoch_end(trainer, pl_module)

    @property
    def _drawn(self) -> list[SweepCondition]:
        """The strongest condition of each kind."""
        return [*{condition.kind: condition for condition in self._conditions}.values()]

    def _reconstructed(self, run: SweepBatch, condition: SweepCondition) -> tuple[Batch, Tensor]:
        """The batch as changed by a condition, and its reconstructions."""
        kind, strength = condition
        if kind == "steps":
            return run.batch, run.with_steps(int(strength))
        if kind == "attack":
            batch: Batch = self.attack.at(strength).attack(run.module, run.batch).batch
        elif kind == "noise":
            batch = run.noisy(strength, self.seed)
        elif kind == "acceleration":
            batch = run.sampled(self.sampling.at(strength))
        else:
            batch = run.batch
        return batch, run.reconstruct(batch)

    def _leave_out(self, what: SweepCondition | str, reason: str) -> None:
        """Skip a condition, or all conditions of a kind."""
        gone = {c for c in self._conditions if what in (c, c.kind)} - self._left_out
        self._left_out |= gone
        if gone:
            named = ", ".join(condition.name for condition in self._conditions if condition in gone)
            self.results.notes.append(f"left out: {named}: {reason}")
            rank_zero_warn(f"RobustnessSweep leaves out {named}: {reason}.")
