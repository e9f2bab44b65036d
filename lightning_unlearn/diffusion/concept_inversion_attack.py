"""Concept inversion as a callback: a learned word before, during and after a run."""

from __future__ import annotations

from pathlib import Path

from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.sources import Source
from lightning_unlearn.diffusion.attacks.concept_inversion import ConceptInversion
from lightning_unlearn.diffusion.attacks.prompts import attack_prompts
from lightning_unlearn.diffusion.unlearn_diff_atk import UnlearnDiffAtk

__all__ = ["ConceptInversionAttack"]


class ConceptInversionAttack(UnlearnDiffAtk):
    r"""Learns a word for the erased concept during a run, and logs how often prompts with this word show the concept.

    It logs ``eval/inversion_pre_asr``, ``eval/inversion_post_asr`` and ``eval/inversion_asr``, and writes to
    ``concept_inversion/<number>-step-<n>`` in the log folder, when and as
    [`UnlearnDiffAtk`][lightning_unlearn.UnlearnDiffAtk] does. Each evaluation learns a new word, the same one on every
    process; the prompts are divided among processes.

    Args:
        attack: The attack, see [`ConceptInversion`][lightning_unlearn.ConceptInversion].
        prompts: Prompts that name the concept.
        every_n_epochs: Epochs between two attacks; with 0, only before and after the run.
        targets: Folder with images of the concept, any number. Where none is given, the base model draws one of each
            prompt, or in ``fit`` the model as it is before the first step.
        base: Folder or hub id of the model before erasure.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range, or a prompt does not name the concept; with the name of a judge,
            when the run is set up.
        MisconfigurationException: If there are no images, and nothing to draw them.

    References:
        Pham et al., *Circumventing Concept Erasure Methods For Text-to-Image Generative Models*, arXiv:2308.01508.
    """

    folder, label = "concept_inversion", "inversion_"
    image_for_each = False

    def __init__(
        self,
        attack: ConceptInversion,
        prompts: Source,
        every_n_epochs: int = 0,
        targets: str | Path | None = None,
        base: str | None = None,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(attack, prompts, every_n_epochs, targets, base, keep_reference)  # type: ignore[arg-type]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the judge, and check that every prompt names the concept."""
        super().setup(trainer, pl_module, stage)
        for row in attack_prompts(self.prompts, self.attack.guidance):
            self.attack.prompt_with(row["prompt"], "")
