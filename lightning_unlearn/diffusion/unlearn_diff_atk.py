"""Whether a prompt brings an erased concept back, along a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn.core.distributed import gather_objects, rank, world_size
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.core.monitor import Monitor, log_table
from lightning_unlearn.core.sources import Source
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.prompts import attack_prompts
from lightning_unlearn.diffusion.attacks.result import AttackResult
from lightning_unlearn.diffusion.attacks.victim import draw, read_images
from lightning_unlearn.diffusion.engine.model import as_text_to_image
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.judges import judge_named

__all__ = ["UnlearnDiffAtk"]


class UnlearnDiffAtk(Monitor):
    r"""Attacks the model with prompts before, during and after a run, and logs how often its concept comes back.

    Logs ``eval/pre_asr``, the share of prompts that show the concept without an attack, ``eval/post_asr``, the
    share that show it only when attacked, and their sum ``eval/asr``. It measures before the first step, after
    every so many epochs and at the end of ``fit``, and in ``trainer.validate`` and ``trainer.test``. The outcomes and
    the prompts found are written to ``unlearn_diff_atk/<number>-step-<n>`` in the log folder. Processes share the
    prompts.

    The attack compares with an image of the concept for each prompt. Where none are given, the base model draws them,
    or in ``fit`` the model as it is before the first step; prompts whose image does not show the concept are left out.

    Args:
        judge: Says what images show; or the name of a judge, see
            [`judge_named`][lightning_unlearn.judge_named].
        concept: The class of the judge that is success, or several.
        prompts: Prompts that name the concept, see
            [`attack_prompts`][lightning_unlearn.diffusion.attacks.prompts.attack_prompts].
        every_n_epochs: Attack after every so many epochs; 0 leaves only before and after.
        targets: Folder with an image of the concept for each prompt, in the order of the numbers in their names.
        base: Folder or hub id of the model before erasure; ``objective="p4d"`` needs it.
        options: Arguments of [`PromptAttack`][lightning_unlearn.PromptAttack], such as
            ``objective``, ``optimizer``, ``tokens`` and ``batch_size``.

    Raises:
        ValueError: If an argument is out of range; with the name of a judge, when the run is set up.
        MisconfigurationException: If there are no target images, and nothing to draw them.

    References:
        Zhang et al., *To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe
        Images ... For Now*, arXiv:2310.11868.
    """

    def __init__(
        self,
        judge: str | Callable[[Tensor], tuple[Tensor, Tensor]],
        concept: str | Sequence[str],
        prompts: Source,
        every_n_epochs: int = 1,
        targets: str | Path | None = None,
        base: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(every_n_epochs)
        if options.get("objective") == "p4d" and base is None:
            raise ValueError("objective='p4d' compares with the model before erasure: give its folder as base.")
        self.judge, self.concept, self.prompts, self.targets, self.base = judge, concept, prompts, targets, base
        self.options = options
        self.result: AttackResult | None = None
        """What the last attack found."""
        self._attack = None if isinstance(judge, str) else self._make_attack()
        self._images: Tensor | None = None
        self._kept: list[int] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the judge, and check all that can be checked before a weight moves."""
        as_text_to_image(pl_module)
        self._attack = self._attack or self._make_attack()
        attack_prompts(self.prompts, self._attack.guidance)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Attack the model as it is now, without logging."""
        with _uncounted(trainer), torch.inference_mode(False):
            self.result = self._run(trainer, module)
        concept = self.concept if isinstance(self.concept, str) else ", ".join(self.concept)
        return self.result.evaluation(trainer.global_step, concept)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack in ``trainer.validate``."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.log_metrics(trainer, pl_module, self.evaluate(trainer, pl_module).metrics)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack in ``trainer.test``."""
        self.log_metrics(trainer, pl_module, self.evaluate(trainer, pl_module).metrics)

    def show(self, logger: Logger, step: int) -> None:
        """Log the prompts that were found."""
        rows = [[e.input, e.output, "yes" if e.hit else "no"] for e in self.history[-1].examples]
        log_table(logger, "eval/adversarial_prompts", ["prompt", "attacked", "shows the concept"], rows, step)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far, and the target images."""
        return {**super().state_dict(), "images": self._images, "kept": self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the evaluations and the target images of the run that is resumed."""
        super().load_state_dict(state_dict)
        self._images, self._kept = state_dict["images"], state_dict["kept"]

    def _make_attack(self) -> PromptAttack:
        judge: Any = judge_named(self.judge) if isinstance(self.judge, str) else self.judge
        return PromptAttack(judge, self.concept, **self.options)

    def _run(self, trainer: Trainer, module: LightningModule) -> AttackResult:
        attack = self._attack
        assert attack is not None
        rows = attack_prompts(self.prompts, attack.guidance)
        base = self._load_base(module) if attack.objective == "p4d" else None
        images = None
        if attack.needs_targets:
            self._make_targets(trainer, module, base, attack, rows)
            assert self._images is not None
            rows, images = [rows[i] for i in self._kept], self._images / 255
        # An edit makes no step: the number of the attack tells before and after apart.
        name = f"{len(self.history)}-step-{trainer.global_step}"
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "unlearn_diff_atk" / name
        mine = slice(rank(), None, world_size())
        own = None
        if rows[mine]:
            own = attack.run(
                module,
                rows[mine],
                None if images is None else images[mine],
                base,
                folder if rank() == 0 else folder / f"process-{rank()}",
                overwrite=True,
            )
        parts = gather_objects(own)
        found = [part for part in parts if part is not None]
        result = AttackResult(
            [row for part in found for row in part.prompts], found[0].settings if found else attack.settings
        )
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps(result.summary(), indent=2) + "\n", encoding="utf-8")
        return result

    def _make_targets(
        self, trainer: Trainer, module: LightningModule, base: Any, attack: PromptAttack, rows: list[dict[str, Any]]
    ) -> None:
        """Once a run, and then in its state."""
        if self._images is not None:
            return
        if self.targets is not None:
            self._images, self._kept = (read_images(self.targets) * 255).round().byte(), list(range(len(rows)))
            return
        fresh = trainer.state.fn == TrainerFn.FITTING and not self.history
        if self.base is None and not fresh:
            raise MisconfigurationException(
                "UnlearnDiffAtk compares with images of the concept, and has none here. Give targets, a folder of "
                "them, or base, the folder or hub id of the model before erasure. In fit, the model draws them before "
                "its first step."
            )
        source = base or (self._load_base(module) if self.base is not None else module)
        mine = range(rank(), len(rows), world_size())
        found: list[tuple[int, Tensor]] = []
        with differentiable(source):
            for i in range(0, len(mine), attack.batch_size):
                part = [rows[j] for j in mine[i : i + attack.batch_size]]
                prompts, seeds, weights = ([row[name] for row in part] for name in ("prompt", "seed", "guidance"))
                images = draw(source, prompts, seeds, weights, attack.sampler_steps)
                seen = attack.shows(images)[0]
                drawn = zip(mine[i : i + attack.batch_size], (images * 255).round().byte(), seen, strict=True)
                found += [(number, image) for number, image, shown in drawn if shown]
        gathered = sorted((pair for pairs in gather_objects(found) for pair in pairs), key=lambda pair: pair[0])
        if not gathered:
            raise MisconfigurationException(
                f"{attack.judge.name} sees the concept {self.concept!r} in none of the images that the model before "
                f"erasure draws of {len(rows)} prompts, so there is nothing to attack. Check the judge, the concept "
                "and the prompts, or give targets."
            )
        self._kept, self._images = [i for i, _ in gathered], torch.stack([image for _, image in gathered])
        rank_zero_info(f"UnlearnDiffAtk: {len(gathered)} of {len(rows)} prompts have an image of the concept.")

    def _load_base(self, module: LightningModule) -> Any:
        from lightning_unlearn.diffusion.text_to_image import LitTextToImage

        assert self.base is not None
        return LitTextToImage(self.base).to(module.device)


@contextmanager
def _uncounted(trainer: Trainer) -> Iterator[None]:
    """What an attack costs is no cost of the method that it measures."""
    counters = [getattr(callback, "passes", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    kept = [(counter, counter.state_dict()) for counter in counters if isinstance(counter, PassCounter)]
    try:
        yield
    finally:
        for counter, state in kept:
            counter.load_state_dict(state)
