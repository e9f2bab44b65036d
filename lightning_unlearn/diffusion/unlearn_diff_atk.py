"""UnlearnDiffAtk as a callback: prompt attacks before, during and after a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.distributed import gather_objects, replica
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.lightning import (
    Callback,
    LightningModule,
    Logger,
    MisconfigurationException,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.core.monitor import Monitor, log_table
from lightning_unlearn.core.resume import callbacks_of
from lightning_unlearn.core.retention import resume
from lightning_unlearn.core.sources import Source
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.prompts import attack_prompts
from lightning_unlearn.diffusion.attacks.result import AttackResult
from lightning_unlearn.diffusion.attacks.victim import fit_images, read_images
from lightning_unlearn.diffusion.engine.model import as_text_to_image, image_size
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.engine.pipeline import draw, load_frozen

__all__ = ["UnlearnDiffAtk"]


class UnlearnDiffAtk(Monitor):
    r"""Attacks the model with adversarial prompts during a run, and logs how often the erased concept comes back.

    Logs ``eval/pre_asr``, the share of prompts that show the concept without an attack, ``eval/post_asr``, the
    share that show it only when attacked, and their sum ``eval/asr``. It measures before the first step, every
    ``every_n_epochs`` epochs and at the end of ``fit``, and in ``trainer.validate`` and ``trainer.test``. The outcomes
    and the adversarial prompts are written to ``unlearn_diff_atk/<number>-step-<n>`` in the log folder. The prompts are
    divided among processes.

    The attack needs a target image of the concept for each prompt. If none are given, the base model draws them, or in
    ``fit`` the model before its first step; prompts whose image does not show the concept are left out.

    Args:
        attack: The attack, see [`PromptAttack`][lightning_unlearn.PromptAttack].
        prompts: Prompts that name the concept, see
            [`attack_prompts`][lightning_unlearn.diffusion.attacks.prompts.attack_prompts].
        every_n_epochs: Epochs between two attacks; with 0, only before and after the run.
        targets: Folder with an image of the concept for each prompt, in the order of the numbers in their names.
        base: Folder or hub id of the model before erasure; ``objective="p4d"`` needs it.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range; with the name of a judge, when the run is set up.
        MisconfigurationException: If there are no target images, and nothing to draw them.

    References:
        Zhang et al., *To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe
        Images ... For Now*, arXiv:2310.11868.
    """

    private = ("history", "images")
    folder, label = "unlearn_diff_atk", ""
    image_for_each = True

    def __init__(
        self,
        attack: PromptAttack,
        prompts: Source,
        every_n_epochs: int = 1,
        targets: str | Path | None = None,
        base: str | None = None,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(every_n_epochs)
        self.keep_reference = keep_reference
        if attack.needs_base and base is None:
            raise ValueError("objective='p4d' compares with the model before erasure: give its folder as base.")
        self.attack: Any = attack
        self.prompts, self.targets, self.base = prompts, targets, base
        self.result: AttackResult | None = None
        """Result of the last attack."""
        self._base: nn.Module | None = None
        self._images: Tensor | None = None
        self._kept: list[int] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the judge, and check all that can be checked before a weight moves."""
        super().setup(trainer, pl_module, stage)
        as_text_to_image(pl_module)
        self.attack.load_judge()
        attack_prompts(self.prompts, self.attack.guidance)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the base model."""
        self._base = None

    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Attack the model as it is now, without logging."""
        with _uncounted(trainer), torch.inference_mode(False):
            self.result = self._run(trainer, module)
        if trainer.state.fn == "fit" and not self.history:
            self._warn_of_absence(self.result)
        evaluation = self.result.evaluation(trainer.global_step, ", ".join(self.attack.concepts))
        metrics = {f"{self.label}{name}": value for name, value in evaluation.metrics.items()}
        return replace(evaluation, metrics=metrics)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack in ``trainer.validate``."""
        if trainer.state.fn == "validate":
            self.log_metrics(trainer, pl_module, self.evaluate(trainer, pl_module).metrics)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack in ``trainer.test``."""
        self.log_metrics(trainer, pl_module, self.evaluate(trainer, pl_module).metrics)

    def show(self, logger: Logger, step: int) -> None:
        """Log the adversarial prompts."""
        rows = [[e.input, e.output, "yes" if e.hit else "no"] for e in self.history[-1].examples]
        log_table(logger, "eval/adversarial_prompts", ["prompt", "attacked", "shows the concept"], rows, step)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far, and the target images."""
        return {**super().state_dict(), "images": self._images, "kept": self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the evaluations and the target images of the run that is resumed."""
        super().load_state_dict(state_dict)
        self._images, self._kept = state_dict["images"], state_dict["kept"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that has ended: its target images are gone.

        Raises:
            MisconfigurationException: If the checkpoint no longer has them.
        """
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        resume(trainer, self, checkpoint)

    def _warn_of_absence(self, result: AttackResult) -> None:
        """Say before the first step if the model hardly draws the concept, so that there is little to erase."""
        if result.counted and result.pre_asr < 0.5:
            rank_zero_warn(
                f"Before the first step, {self.attack.load_judge().name} sees {self.attack.concept!r} in "
                f"{result.pre_asr:.0%} of the images of {len(result.counted)} prompts. What the model does not draw "
                "can't be erased, and rates that are low after the run say nothing. Check the judge, the concept and "
                "the prompts."
            )

    def _run(self, trainer: Trainer, module: LightningModule) -> AttackResult:
        attack, rows = self.attack, attack_prompts(self.prompts, self.attack.guidance)
        images = None
        if attack.needs_targets:
            if self._images is None:
                self._images, self._kept = self._make_targets(trainer, module, rows)
            rows, images = [rows[i] for i in self._kept], self._images / 255
        # An edit makes no step: the number of the attack tells before and after apart.
        name = f"{len(self.history)}-step-{trainer.global_step}"
        folder = Path(trainer.log_dir or trainer.default_root_dir) / self.folder / name
        number, total = replica(trainer)
        share, part = slice(number, None, total), None
        if rows[share]:
            part = attack.run(
                module,
                rows[share],
                images[share] if images is not None and self.image_for_each else images,
                self._load_base(module) if attack.needs_base else None,
                folder if number == 0 else folder / f"process-{number}",
                overwrite=True,
            )
        parts = [gathered for gathered in gather_objects(part) if gathered is not None]
        settings = parts[0].settings if parts else attack.settings
        result = AttackResult([row for gathered in parts for row in gathered.prompts], settings)
        if trainer.is_global_zero:
            write_text(folder / "summary.json", json.dumps(result.summary(), indent=2) + "\n")
        return result

    def _make_targets(
        self, trainer: Trainer, module: LightningModule, rows: list[dict[str, Any]]
    ) -> tuple[Tensor, list[int]]:
        """Images of the concept as bytes, and the numbers of the prompts that they are of: once a run."""
        if self.targets is not None:
            images = fit_images(read_images(self.targets), image_size(module))
            if self.image_for_each and len(images) != len(rows):
                raise MisconfigurationException(
                    f"{self.targets} has {len(images)} images, but there are {len(rows)} prompts. Give one for each."
                )
            return (images * 255).round().byte(), list(range(len(rows)))
        fresh = trainer.state.fn == "fit" and not self.history
        if self.base is None and not fresh:
            raise MisconfigurationException(
                f"{type(self).__name__} compares with images of the concept, and has none here. Give targets, a folder "
                "of them, or base, the folder or hub id of the model before erasure. In fit, the model draws them "
                "before its first step."
            )
        source = module if self.base is None else self._load_base(module)
        number, total = replica(trainer)
        share = range(number, len(rows), total)
        drawn: list[tuple[int, Tensor]] = []
        with differentiable(source):
            for i in range(0, len(share), self.attack.batch_size):
                numbers = share[i : i + self.attack.batch_size]
                wanted = [(rows[j]["prompt"], rows[j]["seed"], rows[j]["guidance"]) for j in numbers]
                images = draw(source, wanted, self.attack.sampler_steps)
                pairs = zip(numbers, (images * 255).round().byte(), self.attack.shows(images)[0], strict=True)
                drawn += [(j, image) for j, image, shown in pairs if shown]
        if not self.attack.needs_base:
            self._base = None  # it is not needed again
        targets = dict(sorted((pair for part in gather_objects(drawn) for pair in part), key=lambda pair: pair[0]))
        if not targets:
            raise MisconfigurationException(
                f"{self.attack.load_judge().name} sees the concept {self.attack.concept!r} in none of the images that "
                f"the model before erasure draws of {len(rows)} prompts, so there is nothing to attack. Check the "
                "judge, the concept and the prompts, or give targets."
            )
        rank_zero_info(f"{type(self).__name__}: {len(targets)} of {len(rows)} prompts have an image of the concept.")
        return torch.stack(list(targets.values())), list(targets)

    def _load_base(self, module: LightningModule) -> nn.Module:
        """The model before erasure, loaded once."""
        if self._base is None:
            assert self.base is not None
            self._base = load_frozen(self.base)
        return self._base.to(module.device)


@contextmanager
def _uncounted(trainer: Trainer) -> Iterator[None]:
    """Leave the passes of an attack out of the counts of the method that it measures."""
    counters = [getattr(callback, "passes", None) for callback in callbacks_of(trainer, Callback)]
    kept = [(counter, counter.state_dict()) for counter in counters if isinstance(counter, PassCounter)]
    try:
        yield
    finally:
        for counter, state in kept:
            counter.load_state_dict(state)
