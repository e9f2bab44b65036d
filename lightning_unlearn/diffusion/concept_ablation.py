"""Concept Ablation: trains the model to draw the anchor in place of a concept."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.modes import without_gradients
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.denoising import anchors, noised
from lightning_unlearn.diffusion.engine.model import as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.objective import DiffusionObjective

__all__ = ["ConceptAblation"]

Variant = Literal["model", "noise"]
Target = Literal["student", "teacher"]
Latents = Literal["images", "sampled"]


class ConceptAblation(DiffusionObjective):
    r"""Concept Ablation: makes the model draw the anchor in place of a concept, such as a cat for Grumpy Cat.

    $$\mathcal{L} = \big\| e_\theta(z_t, t, c^*) - \mathrm{sg}\,[e_\theta(z_t, t, c)] \big\|^2
    + \lambda\, \big\| e_\theta(z_t, t, c) - \epsilon \big\|^2$$

    Means over all elements. $z_t$ are noised images *of the anchor*. A row's caption $c^*$ names the concept in the
    place where $c$ names the anchor; ``CaptionedImageDataModule(concept=...)`` makes such rows. The second term keeps
    the anchor. The noise-based variant has $\epsilon$ as the target of the first term. ``latents="sampled"`` needs
    prompts only: latents of the anchor come from the original model's sampler, which stops at a random step.

    Gradients do not flow through the keys and values of the first token, which is the same for all prompts, as in the
    authors' code. That code also resizes images of objects at random and says so in the captions, which is left to the
    data here. The paper trains ``LitTextToImage(trainable="kv")`` for 100 steps of a global batch of 8 at
    ``lr=1.6e-5``, and ``"full"`` at ``lr=5e-7`` for memorized images.

    Args:
        variant: ``"model"``, the formula, or ``"noise"``, whose target is the noise that was added.
        prior_weight: $\lambda$; 1 in the authors' code where it is on.
        target: Whose prediction for the anchor: ``"student"``, the model as it is now (the paper), or ``"teacher"``,
            the original model.
        latents: ``"images"`` of the forget rows, or ``"sampled"``.
        guidance: Guidance of the sampler of ``latents="sampled"``.
        steps: Steps of that sampler.
        first_token: Whether gradients flow through keys and values of the first token too.
        seed: Seed of the noise and of the noise levels.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range, or one that needs the noise of images meets ``latents="sampled"``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ConceptAblation()], max_steps=100, logger=False, accelerator="cpu")

    References:
        Kumari et al., *Ablating Concepts in Text-to-Image Diffusion Models*, arXiv:2303.13516.
    """

    separable = True

    def __init__(
        self,
        variant: Variant = "model",
        prior_weight: float = 0.0,
        target: Target = "student",
        latents: Latents = "images",
        guidance: float = 6.0,
        steps: int = 50,
        first_token: bool = False,
        seed: int = 0,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(seed)
        self.keep_reference = keep_reference
        self.variant, self.target = one_of("variant", variant, Variant), one_of("target", target, Target)
        self.latents, self.prior_weight = one_of("latents", latents, Latents), at_least("prior_weight", prior_weight, 0)
        self.guidance, self.steps = at_least("guidance", guidance, 0), at_least("steps", steps, 1)
        if latents == "sampled" and (variant == "noise" or prior_weight):
            raise ValueError(
                "variant='noise' and prior_weight compare with the noise that was added to an image, which sampled "
                "latents do not have. Use latents='images', or variant='model' with prior_weight=0."
            )
        self.first_token = first_token
        self._hooks: list[Any] = []
        sampled = latents == "sampled" or (variant == "model" and target == "teacher")
        self.needs = Needs(roles=("forget",), snapshot=sampled)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the gradients of the first token's keys and values."""
        super().on_train_start(trainer, pl_module)
        if not self.first_token:
            # For the whole run and not a step: recomputed activations must meet the hooks too.
            layers = kv_layers(as_text_to_image(pl_module).unet).values()
            self._hooks = [layer.register_forward_hook(_detach_first_token) for layer in layers]

    def release(self) -> None:
        """Remove the hooks."""
        super().release()
        while self._hooks:
            self._hooks.pop().remove()

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of captions of the concept and of its anchor."""
        model, rows = as_text_to_image(module), batch["forget"]
        anchor_ids = anchors("ConceptAblation", rows)
        if self.latents == "sampled":
            with self.teacher(module):
                states, empty = encode(model, anchor_ids), empty_states(model, len(anchor_ids))
                latents, timesteps = self.sample(module, states, empty, self.steps, self.guidance)
            target = None
        else:
            latents, timesteps, target = noised(module, rows, self.draws(module))
        noise = target
        if self.variant == "model":
            # Before any graph is made: exchanging weights would spoil one that already holds them.
            with self.teacher(module) if self.target == "teacher" else without_gradients():
                target = unet_output(model, latents, timesteps, encode(model, anchor_ids))
        assert target is not None

        def term() -> dict[str, Tensor]:
            output = unet_output(model, latents, timesteps, encode(model, rows["input_ids"]))
            return {"loss": F.mse_loss(output, target)}

        ablation = self.smoothed(module, term)["loss"]
        if not self.prior_weight:
            return {"loss": ablation}
        assert noise is not None
        prior = F.mse_loss(unet_output(model, latents, timesteps, encode(model, anchor_ids)), noise)
        return {"loss": ablation + self.prior_weight * prior, "ablation": ablation, "prior": prior}


def _detach_first_token(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)
