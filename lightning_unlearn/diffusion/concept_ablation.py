"""Concept ablation."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.modes import without_gradients
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.model import as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.noised import noised
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.sampling import partial_sample
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.objective import DiffusionObjective

__all__ = ["ConceptAblation"]


class ConceptAblation(DiffusionObjective):
    r"""Concept Ablation: what is drawn for a concept becomes what is drawn for its anchor, such as cats for Grumpy Cat.

    $$\mathcal{L} = \big\| e_\theta(z_t, t, c^*) - \mathrm{sg}\,[e_\theta(z_t, t, c)] \big\|^2
    + \lambda\, \big\| e_\theta(z_t, t, c) - \epsilon \big\|^2$$

    Means over all elements. $z_t$ are noised images *of the anchor*; a row's caption $c^*$ names the concept where its
    anchor $c$ does not, as ``CaptionedImageDataModule(concept=...)`` makes them. The second term keeps the anchor. The
    noise-based variant has $\epsilon$ for a target of the first. Without images, ``latents="sampled"`` takes latents of
    the anchor from the starting model's own sampler, which stops at a random step: prompts are all that it needs.

    Gradients do not flow through the keys and values of the first token, which is the same for all prompts, as in the
    authors' code. That code also resizes images of objects at random and captions them so; here images are as the data
    gives them. The paper trains ``LitTextToImage(trainable="kv")`` for 100 steps of a global batch of 8 at
    ``lr=1.6e-5``, and ``"full"`` at ``lr=5e-7`` for memorized images.

    Args:
        variant: ``"model"``, the formula, or ``"noise"``, whose target is the noise that was added.
        prior_weight: $\lambda$; 1 in the authors' code where it is on.
        target: Whose prediction for the anchor: ``"student"``, the model as it is now (the paper), or ``"teacher"``,
            the starting model.
        latents: ``"images"`` of the forget rows, or ``"sampled"``.
        guidance: Guidance of the sampler of ``latents="sampled"``.
        steps: Steps of that sampler.
        first_token: Whether gradients flow through keys and values of the first token too.
        seed: Seed of the noise and of the noise levels.

    Raises:
        ValueError: If an argument is out of range, or one that needs the noise of images meets ``latents="sampled"``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ConceptAblation()], max_steps=100, logger=False, accelerator="cpu")

    References:
        Kumari et al., *Ablating Concepts in Text-to-Image Diffusion Models*, arXiv:2303.13516.
    """

    def __init__(
        self,
        variant: Literal["model", "noise"] = "model",
        prior_weight: float = 0.0,
        target: Literal["student", "teacher"] = "student",
        latents: Literal["images", "sampled"] = "images",
        guidance: float = 6.0,
        steps: int = 50,
        first_token: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        for name, value, known in (
            ("variant", variant, ("model", "noise")),
            ("target", target, ("student", "teacher")),
            ("latents", latents, ("images", "sampled")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, but got {value!r}.")
        for name, number in (("prior_weight", prior_weight), ("guidance", guidance)):
            if not number >= 0:
                raise ValueError(f"{name} must be at least 0, but got {number}.")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, but got {steps}.")
        if latents == "sampled" and (variant == "noise" or prior_weight):
            raise ValueError(
                "variant='noise' and prior_weight compare with the noise that was added to an image, which sampled "
                "latents do not have. Use latents='images', or variant='model' with prior_weight=0."
            )
        self.variant, self.prior_weight, self.target, self.latents = variant, prior_weight, target, latents
        self.guidance, self.steps, self.first_token = guidance, steps, first_token
        self._hooks: list[Any] = []
        sampled = latents == "sampled" or (variant == "model" and target == "teacher")
        self.needs = Needs(roles=("forget",), snapshot=sampled)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the gradient of the first token's keys and values back."""
        super().on_train_start(trainer, pl_module)
        if not self.first_token:
            # For the whole run and not a step: recomputed activations must meet the hooks too.
            layers = kv_layers(as_text_to_image(pl_module).unet).values()
            self._hooks = [layer.register_forward_hook(_hold_first_token) for layer in layers]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()
        super().on_exception(trainer, pl_module, exception)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of captions of the concept and of its anchor."""
        model, rows = as_text_to_image(module), batch["forget"]
        if "anchor_input_ids" not in rows:
            raise ValueError(
                "ConceptAblation makes a concept its anchor, but the forget rows have no 'anchor_input_ids'; they have "
                f"{sorted(rows)}. CaptionedImageDataModule(anchor=...) and PromptDataModule(anchor=...) make them."
            )
        if self.latents == "sampled":
            latents, timesteps = self.sample(module, rows)
            target = None
        else:
            latents, timesteps, target = noised(module, rows, self.seed)
        noise = target
        if self.variant == "model":
            # Before any graph is made: exchanging weights would spoil one that already holds them.
            with self.teacher(module) if self.target == "teacher" else without_gradients():
                target = unet_output(model, latents, timesteps, encode(model, rows["anchor_input_ids"]))
        assert target is not None
        output = unet_output(model, latents, timesteps, encode(model, rows["input_ids"]))
        parts = {"ablation": F.mse_loss(output, target)}
        if not self.prior_weight:
            return {"loss": parts["ablation"]}
        assert noise is not None
        anchor = unet_output(model, latents, timesteps, encode(model, rows["anchor_input_ids"]))
        parts["prior"] = F.mse_loss(anchor, noise)
        return {"loss": parts["ablation"] + self.prior_weight * parts["prior"], **parts}

    def sample(self, module: LightningModule, rows: Batch) -> tuple[Tensor, Tensor]:
        """Latents of the starting model on their way to images of the anchors, and their timestep."""
        model, count = as_text_to_image(module), len(rows["input_ids"])
        with self.teacher(module):
            return partial_sample(
                model,
                encode(model, rows["anchor_input_ids"]),
                empty_states(model, count),
                self.noise(module, count),
                self.generator(module),
                steps=self.steps,
                guidance=self.guidance,
            )

    def _release(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()


def _hold_first_token(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)
