"""Check before a run that the model knows what it has to forget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.lightning import Callback, LightningModule, Trainer, rank_zero_info, rank_zero_warn
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.diffusion.engine.draws import Draws
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image
from lightning_unlearn.diffusion.engine.sampling import trajectory
from lightning_unlearn.diffusion.engine.text import empty_states, encode, tokenize

__all__ = ["ConceptPresence", "prompt_effect"]


class ConceptPresence(Callback):
    r"""Warns before the first step if prompts to forget hardly change what the model draws.

    Each prompt is drawn from a few noise samples, and so is the empty prompt, from the same ones. The effect of the
    prompt is

    $$\frac{\sqrt{\mathbb{E}\,\|z_c - z_\emptyset\|^2}}{\mathrm{std}(z_\emptyset)},$$

    with the latents $z$ at the end of sampling: 0 if the prompt changes nothing, and about $\sqrt 2$ if the two have
    nothing in common. On the miniature it is above 0.6 for words that the model knows, and mostly below 0.3 for others.
    A small effect shows that the model does not know the words. A large one does not show that it knows the concept,
    which takes a judge: [`UnlearnDiffAtk`][lightning_unlearn.UnlearnDiffAtk] warns if its judge does not see the
    concept.

    It costs ``steps`` passes for each prompt, without gradients, and does not change the run.

    Args:
        prompts: The prompts to check; by default those of the forget set of a data module such as
            [`PromptDataModule`][lightning_unlearn.PromptDataModule], each once.
        limit: Maximum number of prompts to check, from the first one on.
        images: Noise samples for each prompt.
        steps: Steps of the sampler.
        guidance: Weight of classifier-free guidance.
        threshold: Effects below it cause a warning.

    Raises:
        ValueError: If a number is out of range, or there are neither prompts nor a data module that has them.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ConceptPresence()], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        limit: int = 4,
        images: int = 2,
        steps: int = 12,
        guidance: float = 4.0,
        threshold: float = 0.5,
    ) -> None:
        self.prompts, self.threshold = prompts, above("threshold", threshold, 0)
        self.limit, self.images = at_least("limit", limit, 1), at_least("images", images, 1)
        self.steps, self.guidance = at_least("steps", steps, 1), at_least("guidance", guidance, 0)
        self.effects: dict[str, float] = {}
        """The effect of each prompt that was checked."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module is a diffusion model."""
        if stage == "fit":
            as_text_to_image(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, and say which prompts have little effect; a resumed run was checked at its start."""
        if trainer.global_step:
            return
        model, prompts = as_text_to_image(pl_module), self._prompts(trainer)[: self.limit]
        noise = Draws(0, 0).noise(model, self.images)
        with differentiable(pl_module), torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
            self.effects = {
                prompt: prompt_effect(model, prompt, noise, self.steps, self.guidance) for prompt in prompts
            }
        weak = {prompt: round(effect, 2) for prompt, effect in self.effects.items() if effect < self.threshold}
        if weak:
            rank_zero_warn(
                f"{len(weak)} of {len(prompts)} prompts to forget hardly change what the model draws, by their effect "
                f"between 0 and about 1.4: {weak}. It does not seem to know these words, so there is nothing to erase. "
                "Look at images of them, and check the spelling and the model."
            )
        else:
            rank_zero_info(f"ConceptPresence: each of {len(prompts)} prompts changes what the model draws.")

    def _prompts(self, trainer: Trainer) -> list[str]:
        if self.prompts is not None:
            return list(self.prompts)
        rows: Any = getattr(getattr(trainer, "datamodule", None), "sets", {}).get("forget")
        found = getattr(rows, "prompts", None)
        found = getattr(found, "prompts", found)  # of images with captions
        if not isinstance(found, Sequence):
            raise ValueError(
                "ConceptPresence reads the prompts of a PromptDataModule or a CaptionedImageDataModule, and the run "
                "has neither. Give prompts."
            )
        return list(dict.fromkeys(found))


def prompt_effect(model: TextToImage, prompt: str, noise: Tensor, steps: int = 12, guidance: float = 4.0) -> float:
    """How much a prompt changes what a model draws, see `ConceptPresence`.

    Args:
        model: The model, in evaluation mode and without gradients.
        prompt: The prompt.
        noise: Shape ``(B, C, h, w)``.
        steps: Steps of DDIM.
        guidance: Weight of classifier-free guidance.
    """
    rows = len(noise)
    empty = empty_states(model, rows)
    states = encode(model, tokenize(model.tokenizer, [prompt])["input_ids"]).expand(rows, -1, -1)
    both = torch.cat([states, empty])
    for latents, _ in trajectory(
        model, both, torch.cat([empty, empty]), noise.repeat(2, 1, 1, 1), steps=steps, guidance=guidance
    ):
        finished = latents
    drawn, plain = finished.float().chunk(2)
    return float((drawn - plain).square().mean().sqrt() / plain.std())
