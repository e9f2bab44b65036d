"""RECE: reliable and efficient concept erasure."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.progress import progress
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.model import as_text_to_image
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.uce import UCE, States, each_row
from lightning_unlearn.functional.diffusion.rece import closed_form_attack

__all__ = ["RECE"]


class RECE(UCE):
    r"""RECE: [`UCE`][lightning_unlearn.UCE], followed by edits of the text states that would bring the concept back.

    Each epoch finds, in closed form, the text states whose keys and values in the edited model equal those that the
    original model had for the concept,

    $$c' = \Big(\lambda_a I + \sum_i W_i^\top W_i\Big)^{-1} \sum_i W_i^\top W_i^0\, c,$$

    at every position of its prompt, and edits them to become the states of the empty prompt at that position. The UNet
    is never run.

    Args:
        epochs: Rounds of attack and edit; 3 for nudity, 1 for artists and objects that are hard to erase.
        attack_lamb: $\lambda_a > 0$, which keeps $c'$ short: the smaller, the stronger the attack. 0.1 for nudity,
            0.001 for artists and hard objects.
        erase_scale: As for UCE.
        preserve_scale: As there.
        lamb: As there.
        states: As there, in the first edit.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RECE(epochs=3)], logger=False, accelerator="cpu")

    References:
        Gong et al., *Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models*, arXiv:2407.12383.
    """

    def __init__(
        self,
        epochs: int = 1,
        attack_lamb: float = 0.1,
        erase_scale: float = 1.0,
        preserve_scale: float = 0.1,
        lamb: float = 0.1,
        states: States = "rest",
    ) -> None:
        super().__init__(erase_scale, preserve_scale, lamb, states)
        self.epochs = at_least("epochs", epochs, 1, hint="UCE has no rounds")
        self.attack_lamb = above("attack_lamb", attack_lamb, 0)

    def edit(self, module: LightningModule, forget: Iterable[Batch], retain: Iterable[Batch] | None = None) -> None:
        """Edit the key and value weights; arguments and errors as for UCE."""
        model = as_text_to_image(module)
        layers = kv_layers(model.unet).values()
        originals = [layer.weight.detach().clone() for layer in layers]
        super().edit(module, forget, retain)
        with evaluating(module), torch.autocast(module.device.type, enabled=False):
            prompts = [encode(model, ids[None])[0] for (ids,) in each_row(module, forget, ("input_ids",))]
            guides = empty_states(model, len(prompts)).flatten(0, 1)
            keep = self.kept(module, retain) if retain is not None and self.preserve_scale else None
            for _ in progress(range(self.epochs), "RECE: rounds"):
                adversarial = self.attack(torch.cat(prompts), [layer.weight for layer in layers], originals)
                self.apply(model, adversarial, guides, keep)

    def attack(self, concepts: Tensor, weights: list[Tensor], originals: list[Tensor]) -> Tensor:
        """Text states that bring concepts back, shape ``(N, D)``."""
        return closed_form_attack(concepts, weights, originals, lamb=self.attack_lamb)
