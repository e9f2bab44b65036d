"""Scissorhands: re-initialise the weights most sensitive to a concept, then repair the model."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import at_least, between, one_of, regex
from lightning_unlearn.core.distributed import replica
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.rows import RunRows
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.denoising import anchor_output, denoising_loss, noised
from lightning_unlearn.diffusion.engine.model import as_text_to_image, guided_output
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.injected_gradients import (
    check_gradients,
    gradients,
    inner_product,
    loss_with_gradient,
    trained,
)
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.scissorhands import Initialization, fresh_values, projection_weight
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.functional.saliency.snip import snip_score
from lightning_unlearn.functional.saliency.threshold import Place, top_mask, top_threshold

__all__ = ["Scissorhands"]

Repair = Literal["project", "ascent", "anchor"]


class Scissorhands(DiffusionObjective):
    r"""Scissorhands: re-initialise the weights that the forget images depend on, then repair the model.

    Before the first step, each trainable weight gets the score $s_i = |\theta_i| \sum_b |\nabla_i L_b|$ over batches of
    forget images. Of all $N$ weights, the $N - \lfloor \mathrm{sparsity}\, N \rfloor$ with the highest scores are
    re-initialised. Then the model trains on the retain images, and away from the forget images in one of these ways:

    * ``"project"``, the paper: gradients of the retain loss are projected so that a step does not lower the forget
      loss, see [`projection_weight`][lightning_unlearn.functional.diffusion.scissorhands.projection_weight]; the memory
      is the gradient of the batch's own forget images;
    * ``"ascent"``, the authors' code for classes: $L_r - \lambda L_f$;
    * ``"anchor"``, their code for nudity: $L_r + \lambda \|e_\theta(z_t, t, c_f) - e_\theta(z_t, t, c_a)\|^2$, without
      gradient of the second output, that for the row's anchor ``anchor_input_ids (B, L)``.

    What can be re-initialised and what trains are the weights that the module trains: the paper's choice is
    ``LitTextToImage(trainable="full")``. A batch has images and captions of both roles, see
    [`denoising_nll`][lightning_unlearn.denoising_nll].

    Args:
        sparsity: Share of the weights that are not re-initialised, in [0, 1]: 0.995 for nudity, 0.999 for classes.
        repair: How the model is kept from the forget images.
        forget_weight: $\lambda \ge 0$ of ``"ascent"`` and ``"anchor"``.
        margin: Margin of the projection.
        batches: Batches of forget images that scores are summed over.
        guidance: Guidance of the output whose loss is differentiated for the scores. At 1 it is the plain denoising
            loss; the authors' code for classes has 8.5.
        layers: Regular expression. Weights with the highest scores are re-initialised only if it matches a part of the
            name of their parameter. The authors' code for Stable Diffusion has
            ``r"up_blocks\.(1\.attentions\.1|2\.attentions\.1)\..*attn1"``.
        initialization: ``"kaiming_uniform"`` (nudity) or ``"trunc_normal"`` (classes).
        seed: Seed of the new values, the noise and the noise levels.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: If ``layers`` leaves nothing to re-initialise, or the forget rows can't be read one
            by one; on sharded weights and ``precision="16-mixed"``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Scissorhands(sparsity=0.99)], logger=False, accelerator="cpu")

    References:
        Wu and Harandi, *Scissorhands: Scrub Data Influence via Connection Sensitivity in Networks*, arXiv:2401.06187.
    """

    needs = Needs()
    inseparable = "projects the gradient of one term by that of the other, unless repair is 'ascent' or 'anchor'"

    def __init__(
        self,
        sparsity: float = 0.995,
        repair: Repair = "project",
        forget_weight: float = 0.1,
        margin: float = 0.5,
        batches: int = 10,
        guidance: float = 1.0,
        layers: str | None = None,
        initialization: Initialization = "kaiming_uniform",
        seed: int = 0,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(seed)
        self.keep_reference = keep_reference
        self.sparsity = between("sparsity", sparsity, 0, 1, hint="it is the share of weights that stay")
        self.repair = one_of("repair", repair, Repair)
        self.forget_weight, self.margin = at_least("forget_weight", forget_weight, 0), at_least("margin", margin, 0)
        self.batches, self.guidance = at_least("batches", batches, 1), at_least("guidance", guidance, 0)
        self.layers = layers if layers is None else regex("layers", layers)
        self.separable = repair != "project" and forget_weight > 0
        self.initialization = one_of("initialization", initialization, Initialization)
        self.reinitialized: dict[str, int] = {}
        """By parameter name how many of its weights were re-initialised."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_gradients(trainer, type(self).__name__)
        super().setup(trainer, pl_module, stage)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Score the weights and re-initialise the highest."""
        super().begin(trainer, module)
        self.reinitialize(module, self.scores(trainer, module))

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue: the weights were re-initialised when the run began."""
        super().restore(state, trainer, module)
        self.reinitialized = state["reinitialized"]

    def state_dict(self) -> dict[str, Any]:
        """The passes made, and what was re-initialised."""
        return {**super().state_dict(), "reinitialized": self.reinitialized}

    def scores(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
        """Sensitivity of the loss of the forget images to each weight that trains, by name."""
        parameters = trained(module)
        total = [torch.zeros_like(p) for p in parameters.values()]
        with evaluating(module), torch.enable_grad(), trainer.precision_plugin.forward_context():
            for number, (batch, _) in enumerate(self._forget_rows(trainer)):
                loss = self.saliency_loss(module, batch, number)
                for piece, gradient in zip(total, gradients(loss, list(parameters.values())), strict=True):
                    piece += gradient.abs()
        return {
            name: snip_score(p.detach(), piece).float()
            for (name, p), piece in zip(parameters.items(), total, strict=True)
        }

    def saliency_loss(self, module: LightningModule, batch: Batch, number: int) -> Tensor:
        """The denoising loss of forget images under guidance, a scalar."""
        rows, model = noised(module, batch, self.draws(module), 2 + number), as_text_to_image(module)
        if self.guidance == 1:
            return denoising_loss(module, batch, rows)
        states = empty_states(model, len(rows.latents)), encode(model, batch["input_ids"])
        output = guided_output(model, rows.latents, rows.timesteps, *states, self.guidance)
        return F.mse_loss(output, rows.target.float())

    @torch.no_grad()
    def reinitialize(self, module: LightningModule, scores: dict[str, Tensor]) -> None:
        """Re-initialise the weights with the highest scores.

        Raises:
            MisconfigurationException: If ``layers`` leaves none of them.
        """
        parameters, offset, places = trained(module), 0, {}
        for name, parameter in parameters.items():
            places[name] = Place.of_whole(parameter, offset)
            offset += parameter.numel()
        count = offset - int(self.sparsity * offset)
        cutoff = top_threshold(list(scores.values()), count, list(places.values()))
        masks = {
            name: top_mask(scores[name], cutoff, place)
            for name, place in places.items()
            if re.search(self.layers or "", name)
        }
        self.reinitialized = {name: int(mask.sum()) for name, mask in masks.items() if mask.any()}
        if count and not self.reinitialized:
            raise MisconfigurationException(
                f"None of the {count} weights with the highest scores is in layers={self.layers!r}, so none would be "
                f"re-initialised. Parameters that train look like {next(iter(parameters))!r}; take a lower sparsity, "
                "or layers that are among them."
            )
        for number, (name, parameter) in enumerate(parameters.items()):
            if name in self.reinitialized:
                draw, scale = keyed_generator(self.seed, 6, number), float(name.endswith("weight"))
                fresh = fresh_values(parameter, draw, self.initialization, vector=scale)
                parameter.copy_(torch.where(masks[name], fresh.to(parameter), parameter))
        rank_zero_info(f"Scissorhands re-initialised {sum(self.reinitialized.values())} of {offset} weights.")

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of images to forget and one to keep."""
        draws = self.draws(module)
        forget_rows = noised(module, batch["forget"], draws)
        target, sign = None, -1.0
        if self.repair == "anchor":
            target, sign = anchor_output(module, "Scissorhands", batch["forget"], forget_rows), 1.0
        if self.repair != "project":

            def term() -> dict[str, Tensor]:
                forget = denoising_loss(module, batch["forget"], forget_rows, target)
                return {"loss": sign * self.forget_weight * forget, "forget": forget}

            # The forget term goes first: smoothing changes weights, which would spoil a graph that already holds them.
            parts = self.smoothed(module, term)
            retain = denoising_loss(module, batch["retain"], noised(module, batch["retain"], draws, 1))
            return {**parts, "loss": retain + parts["loss"], "retain": retain}
        retain = denoising_loss(module, batch["retain"], noised(module, batch["retain"], draws, 1))
        forget = denoising_loss(module, batch["forget"], forget_rows)
        parameters = list(trained(module).values())
        r, f = gradients(retain, parameters), gradients(forget, parameters)
        weight = projection_weight(inner_product(r, f), inner_product(f, f), self.margin)
        projected = [a - weight * b for a, b in zip(r, f, strict=True)]
        loss = loss_with_gradient(retain, parameters, projected)
        return {"loss": loss, "retain": retain, "forget": forget, "projection": weight}

    def _forget_rows(self, trainer: Trainer) -> RunRows:
        """Batches of forget rows in a drawn order, over and over; of each one every process reads its share."""
        loader = self.row_loaders(trainer)["forget"]
        chunks = loader.chunks
        count, total = loader.count, replica(trainer).total
        size = len(chunks[0]) * total
        order = torch.randperm(count, generator=keyed_generator(self.seed, 7)).tolist()
        drawn = [[order[(j * size + i) % count] for i in range(size)] for j in range(self.batches)]
        shares = [batch[number::total] for batch in drawn for number in range(total)]
        return RunRows(trainer, loader.select(shares), "Scissorhands: forget rows")
