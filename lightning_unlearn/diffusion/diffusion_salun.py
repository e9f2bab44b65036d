"""SalUn on diffusion models: saliency unlearning of concepts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.denoising import anchor_output, noised
from lightning_unlearn.diffusion.engine.model import as_text_to_image, guided_output, unet_output
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.objective import DiffusionObjective

__all__ = ["DiffusionSalUn"]


class DiffusionSalUn(DiffusionObjective):
    r"""SalUn for diffusion models: trains the weights that matter to a concept to draw another one.

    $$\mathcal{L} = \big\| e_\theta(z_t, t, c_f) - \mathrm{sg}\,[e_\theta(z_t, t, c_a)] \big\|^2
    + \alpha\, \big\| e_\theta(z^r_t, t^r, c_r) - \epsilon \big\|^2$$

    Means over all elements. $z_t$ are noised images of the concept with captions $c_f$, $c_a$ are the rows' anchors:
    another class, or "a photo of a person wearing clothes" for "a photo of a nude person". The target comes from the
    model as it is now. Retain rows are trained on as usual; without them, all images are ruined.

    SalUn trains half of the weights: add the mask [`SalUn`][lightning_unlearn.SalUn] to the Trainer beside this
    callback. The mask is scored by the gradient of ``score`` over the forget images, which is their guided denoising
    loss $\|(1 + w)\, e_\theta(z_t, t, c_f) - w\, e_\theta(z_t, t, c_0) - \epsilon\|^2$ with one noise sample per image.
    Use ``LitTextToImage(trainable="full")`` or ``"xattn"`` with its default Adam and ``lr=1e-5``.

    The paper's experiments on DDPM sum the retain loss over an image and average the forget loss, so their weight of
    1e-3 corresponds to $10^{-3} \cdot C h w$ here, about 3.07 on CIFAR-10.

    Args:
        retain_weight: $\alpha$; 0.5 in the authors' instructions for Stable Diffusion.
        mask_guidance: $w$ of the loss that the mask is scored by; 7.5 in the authors' code.
        seed: Seed of the noise and of the noise levels.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

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

    separable = True

    def __init__(
        self, retain_weight: float = 0.5, mask_guidance: float = 7.5, seed: int = 0, keep_reference: bool = False
    ) -> None:
        super().__init__(seed)
        self.keep_reference = keep_reference
        self.retain_weight = at_least("retain_weight", retain_weight, 0)
        self.mask_guidance = at_least("mask_guidance", mask_guidance, 0)
        self.score = self.guided_denoising
        self.needs = Needs(roles=("forget", "retain") if retain_weight else ("forget",))

    def guided_denoising(self, module: LightningModule, batch: Batch) -> Tensor:
        """The loss that a mask is scored by, of each row, shape ``(B,)``."""
        model, rows = as_text_to_image(module), noised(module, batch, self.draws(module))
        states = empty_states(model, len(rows.latents)), encode(model, batch["input_ids"])
        output = guided_output(model, rows.latents, rows.timesteps, *states, 1 + self.mask_guidance)
        return (output - rows.target).square().flatten(1).mean(1)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on images to forget and to keep."""
        model, draws = as_text_to_image(module), self.draws(module)
        rows = {role: noised(module, batch[role], draws, number) for number, role in enumerate(self.needs.roles)}
        target = anchor_output(module, "DiffusionSalUn", batch["forget"], rows["forget"])
        targets = {role: target if role == "forget" else row.target for role, row in rows.items()}
        weights = {"forget": 1.0, "retain": self.retain_weight}

        def terms(roles: Sequence[str]) -> dict[str, Tensor]:
            outputs = unet_output(
                model,
                torch.cat([rows[role].latents for role in roles]),
                torch.cat([rows[role].timesteps for role in roles]),
                encode(model, torch.cat([batch[role]["input_ids"] for role in roles])),
            ).split([len(rows[role].latents) for role in roles])
            parts = {role: F.mse_loss(output, targets[role]) for role, output in zip(roles, outputs, strict=True)}
            return {"loss": torch.stack([weights[role] * part for role, part in parts.items()]).sum(), **parts}

        return self.by_term(module, terms, self.needs.roles)
