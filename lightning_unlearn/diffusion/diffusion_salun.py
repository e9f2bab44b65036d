"""Saliency unlearning of concepts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.modes import without_gradients
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.model import as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.noised import noised
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.guidance import classifier_free_guidance

__all__ = ["DiffusionSalUn"]


class DiffusionSalUn(DiffusionObjective):
    r"""SalUn for diffusion models: what is drawn for a concept becomes what is drawn for another one.

    $$\mathcal{L} = \big\| e_\theta(z_t, t, c_f) - \mathrm{sg}\,[e_\theta(z_t, t, c_a)] \big\|^2
    + \alpha\, \big\| e_\theta(z^r_t, t^r, c_r) - \epsilon \big\|^2$$

    Means over all elements. $z_t$ are noised images of the concept with captions $c_f$, $c_a$ are the rows' anchors:
    another class, or "a photo of a person wearing clothes" for "a photo of a nude person". The target comes from the
    model as it is now. Retain rows are trained on as ever; without them all that the model draws is lost.

    SalUn lets half of the weights move: put the mask [`SalUn`][lightning_unlearn.SalUn] beside this
    callback. It is scored by the gradient of ``score`` over the images to forget, their guided denoising loss
    $\|(1 + w)\, e_\theta(z_t, t, c_f) - w\, e_\theta(z_t, t, c_0) - \epsilon\|^2$, one draw an image. Take
    ``LitTextToImage(trainable="full")`` or ``"xattn"``, its Adam as it is, and ``lr=1e-5``.

    The paper's experiments on DDPM sum the retain loss over an image and average that to forget, so their weight of
    1e-3 is here $10^{-3} \cdot C h w$, about 3.07 on CIFAR-10.

    Args:
        retain_weight: $\alpha$; 0.5 in the authors' instructions for Stable Diffusion.
        mask_guidance: $w$ of the loss that the mask is scored by; 7.5 in the authors' code.
        seed: Seed of the noise and of the noise levels.

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import SalUn
        >>> trainer = Trainer(callbacks=[DiffusionSalUn(), SalUn(density=0.5)], logger=False, accelerator="cpu")

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, arXiv:2310.12508.
    """

    def __init__(self, retain_weight: float = 0.5, mask_guidance: float = 7.5, seed: int = 0) -> None:
        super().__init__(seed)
        for name, value in (("retain_weight", retain_weight), ("mask_guidance", mask_guidance)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, but got {value}.")
        self.retain_weight, self.mask_guidance = retain_weight, mask_guidance
        self.score = self.guided_denoising
        self.needs = Needs(roles=("forget", "retain") if retain_weight else ("forget",))

    def guided_denoising(self, module: LightningModule, batch: Batch) -> Tensor:
        """The loss that a mask is scored by, of each row, shape ``(B,)``."""
        model, rows = as_text_to_image(module), noised(module, batch, self.seed)
        states = torch.cat([empty_states(model, len(rows.latents)), encode(model, batch["input_ids"])])
        both = unet_output(model, rows.latents.repeat(2, 1, 1, 1), rows.timesteps.repeat(2), states)
        empty, concept = both.chunk(2)
        guided = classifier_free_guidance(empty, concept, 1 + self.mask_guidance)
        return (guided - rows.target).square().flatten(1).mean(1)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on images to forget and to keep."""
        model, forget = as_text_to_image(module), batch["forget"]
        if "anchor_input_ids" not in forget:
            raise ValueError(
                "DiffusionSalUn teaches another concept in place of the one to forget, but the forget rows have no "
                f"'anchor_input_ids'; they have {sorted(forget)}. CaptionedImageDataModule(anchor=...) makes them."
            )
        rows = {role: noised(module, batch[role], self.seed, number) for number, role in enumerate(self.needs.roles)}
        with without_gradients():
            states = encode(model, forget["anchor_input_ids"])
            target = unet_output(model, rows["forget"].latents, rows["forget"].timesteps, states)
        outputs = unet_output(
            model,
            torch.cat([row.latents for row in rows.values()]),
            torch.cat([row.timesteps for row in rows.values()]),
            encode(model, torch.cat([batch[role]["input_ids"] for role in rows])),
        ).split([len(row.latents) for row in rows.values()])
        parts = {"forget": F.mse_loss(outputs[0], target)}
        if self.retain_weight:
            parts["retain"] = F.mse_loss(outputs[1], rows["retain"].target)
        return {"loss": parts["forget"] + self.retain_weight * parts.get("retain", 0.0), **parts}
