"""Cutting what a concept hangs on, and growing back the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.distributed import rank, world_size
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.model import as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.noised import noised
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.erase_diff import anchor_output, denoising_loss
from lightning_unlearn.diffusion.injected_gradients import (
    check_gradients,
    gradients,
    inner_product,
    loss_with_gradient,
    movable,
)
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.guidance import classifier_free_guidance
from lightning_unlearn.functional.diffusion.scissorhands import Initialization, fresh_values, projection_weight
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.functional.saliency.snip import snip_score
from lightning_unlearn.functional.saliency.threshold import Place, top_mask, top_threshold

__all__ = ["Scissorhands"]


class Scissorhands(DiffusionObjective):
    r"""Scissorhands: the weights that the forget images hang on are drawn anew, then the model is repaired.

    Before the first step each weight that trains has the score $s_i = |\theta_i| \sum_b |\nabla_i L_b|$ over batches of
    forget images. The $N - \lfloor \mathrm{sparsity}\, N \rfloor$ highest of all $N$ are re-initialised. Then the model
    trains on the retain images, and keeps off the forget images in one of these ways:

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
        sparsity: Share of the weights that stay, in [0, 1]: 0.995 for nudity, 0.999 for classes. With 1 none is
            re-initialised.
        repair: How the forget images are kept off.
        forget_weight: $\lambda \ge 0$ of ``"ascent"`` and ``"anchor"``.
        margin: Margin of the projection.
        batches: Batches of forget images that scores are summed over.
        guidance: Guidance of the output whose loss is differentiated for the scores. At 1 it is the plain denoising
            loss; the authors' code for classes has 8.5.
        layers: Regular expression: of the highest scores only those of parameters whose name it is found in are
            re-initialised. The authors' code for Stable Diffusion has
            ``r"up_blocks\.(1\.attentions\.1|2\.attentions\.1)\..*attn1"``.
        initialization: ``"kaiming_uniform"`` (nudity) or ``"trunc_normal"`` (classes).
        seed: Seed of the new values, the noise and the noise levels.

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

    def __init__(
        self,
        sparsity: float = 0.995,
        repair: Literal["project", "ascent", "anchor"] = "project",
        forget_weight: float = 0.1,
        margin: float = 0.5,
        batches: int = 10,
        guidance: float = 1.0,
        layers: str | None = None,
        initialization: Initialization = "kaiming_uniform",
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if not 0 <= sparsity <= 1:
            raise ValueError(f"sparsity is the share of weights that stay, in [0, 1], but got {sparsity}.")
        if repair not in ("project", "ascent", "anchor"):
            raise ValueError(f"repair must be 'project', 'ascent' or 'anchor', but got {repair!r}.")
        for name, value in (("forget_weight", forget_weight), ("margin", margin), ("guidance", guidance)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, but got {value}.")
        if batches < 1:
            raise ValueError(f"batches must be at least 1, but got {batches}.")
        if initialization not in ("kaiming_uniform", "trunc_normal"):
            raise ValueError(f"initialization must be 'kaiming_uniform' or 'trunc_normal', but got {initialization!r}.")
        try:
            re.compile(layers or "")
        except re.error as error:
            raise ValueError(f"layers={layers!r} is not a regular expression: {error}.") from None
        self.sparsity, self.repair, self.forget_weight, self.margin = sparsity, repair, forget_weight, margin
        self.batches, self.guidance, self.layers, self.initialization = batches, guidance, layers, initialization
        self.reinitialized: dict[str, int] = {}
        """By parameter name how many of its weights were drawn anew."""

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
        """How much the loss of the forget images hangs on each weight that trains, by name."""
        parameters = movable(module)
        total = [torch.zeros_like(p) for p in parameters.values()]
        with evaluating(module), torch.enable_grad(), trainer.precision_plugin.forward_context():
            for number, batch in enumerate(self._forget_batches(trainer)):
                loss = self.saliency_loss(module, batch, number)
                for piece, gradient in zip(total, gradients(loss, list(parameters.values())), strict=True):
                    piece += gradient.abs()
        return {
            name: snip_score(p.detach(), piece).float()
            for (name, p), piece in zip(parameters.items(), total, strict=True)
        }

    def saliency_loss(self, module: LightningModule, batch: Batch, number: int) -> Tensor:
        """The denoising loss of forget images under guidance, a scalar."""
        rows, model = noised(module, batch, self.seed, 2 + number), as_text_to_image(module)
        if self.guidance == 1:
            return denoising_loss(module, batch, rows)
        states = torch.cat([empty_states(model, len(rows.latents)), encode(model, batch["input_ids"])])
        outputs = unet_output(model, rows.latents.repeat(2, 1, 1, 1), rows.timesteps.repeat(2), states).chunk(2)
        return F.mse_loss(classifier_free_guidance(outputs[0], outputs[1], self.guidance), rows.target.float())

    @torch.no_grad()
    def reinitialize(self, module: LightningModule, scores: dict[str, Tensor]) -> None:
        """Draw the weights with the highest scores anew.

        Raises:
            MisconfigurationException: If ``layers`` leaves none of them.
        """
        parameters, offset, places = movable(module), 0, {}
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
        rank_zero_info(f"Scissorhands drew {sum(self.reinitialized.values())} of {offset} weights anew.")

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of images to forget and one to keep."""
        forget_rows = noised(module, batch["forget"], self.seed, 0)
        retain = denoising_loss(module, batch["retain"], noised(module, batch["retain"], self.seed, 1))
        if self.repair == "anchor":
            model, target = as_text_to_image(module), anchor_output(module, batch["forget"], forget_rows)
            states = encode(model, batch["forget"]["input_ids"])
            forget = F.mse_loss(unet_output(model, forget_rows.latents, forget_rows.timesteps, states), target)
            return {"loss": retain + self.forget_weight * forget, "retain": retain, "forget": forget}
        forget = denoising_loss(module, batch["forget"], forget_rows)
        if self.repair == "ascent":
            return {"loss": retain - self.forget_weight * forget, "retain": retain, "forget": forget}
        parameters = list(movable(module).values())
        r, f = gradients(retain, parameters), gradients(forget, parameters)
        weight = projection_weight(inner_product(r, f), inner_product(f, f), self.margin)
        projected = [a - weight * b for a, b in zip(r, f, strict=True)]
        loss = loss_with_gradient(retain, parameters, projected)
        return {"loss": loss, "retain": retain, "forget": forget, "projection": weight}

    def _forget_batches(self, trainer: Trainer) -> Iterator[Batch]:
        """Batches of forget rows in a drawn order, over and over; of each one this process gives its rows."""
        loader = row_loader(trainer.train_dataloader, "forget")
        chunks = [list(chunk) for chunk in loader.batch_sampler] if loader is not None else []  # type: ignore[union-attr]
        if not chunks:
            raise MisconfigurationException(
                "Scissorhands scores weights on the forget rows one by one, but the run has none, or they are of an "
                "iterable dataset. Pass trainer.fit(module, {'forget': ..., 'retain': ...}) with map-style datasets."
            )
        count, size = sum(map(len, chunks)), len(chunks[0]) * world_size()
        order = torch.randperm(count, generator=keyed_generator(self.seed, 7)).tolist()
        drawn = [[order[(j * size + i) % count] for i in range(size)] for j in range(self.batches)]
        mine = [batch[rank() :: world_size()] for batch in drawn]
        loader = row_loader(trainer.train_dataloader, "forget", chunks=mine)
        assert loader is not None
        for batch in loader:
            yield trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))
