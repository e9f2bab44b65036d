"""Erased stable diffusion."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.model import as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.sampling import Pairing, partial_sample
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.esd import esd_target

__all__ = ["ESD"]


class ESD(DiffusionObjective):
    r"""ESD: the model learns to steer away from a concept where it used to steer towards it.

    $$\mathcal{L} = \big\| e_\theta(z_t, t, c_p) - \big(e^*_0 - \eta\,(e^*_p - e^*_0)\big) \big\|^2$$

    Mean over all elements. $e^*$ is the starting model for the concept $c_p$ and for the empty prompt. The latents
    $z_t$ come from a sampler that draws the concept and stops at a random step, so prompts are all that is needed. What
    trains is the module's choice: ``LitTextToImage(trainable="xattn")`` makes it ESD-x, for styles and names;
    ``"noxattn"`` ESD-u, for what no prompt names, such as nudity; ``"kv"`` ESD-x-strict; or the text encoder.

    The authors' newer code is ``ESD(negative_guidance=2.0, base="concept", sampler="teacher")`` on
    ``LitTextToImage(compat="diffusers", lr=5e-5)``. The target with base ``"concept"`` and $\eta + 1$ is that with base
    ``"empty"`` and $\eta$.

    Args:
        negative_guidance: $\eta \ge 0$; 1 in the paper.
        base: What the concept is taken away from: ``"empty"``, $e^*_0$ (the paper); ``"concept"``, $e^*_p$; or
            ``"anchor"``, the output for the row's anchor, which the student is then trained on: with "hat" and its
            anchor "cowboy", cowboys lose their hats and hats stay.
        start_guidance: Guidance of the sampler that makes the latents.
        steps: Steps of that sampler.
        sampler: Whose latents: ``"student"``, the model as it is now (the paper), or ``"teacher"``.
        pairing: ``"exact"``, or ``"ldm"`` for the authors' timesteps, see
            [`partial_sample`][lightning_unlearn.diffusion.engine.sampling.partial_sample].
        seed: Seed of the noise and of the noise levels.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ESD()], max_steps=1000, logger=False, accelerator="cpu")

    References:
        Gandikota et al., *Erasing Concepts from Diffusion Models*, arXiv:2303.07345.
    """

    needs = Needs(roles=("forget",), snapshot=True)

    def __init__(
        self,
        negative_guidance: float = 1.0,
        base: Literal["empty", "concept", "anchor"] = "empty",
        start_guidance: float = 3.0,
        steps: int = 50,
        sampler: Literal["student", "teacher"] = "student",
        pairing: Pairing = "exact",
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if not negative_guidance >= 0:
            raise ValueError(f"negative_guidance must be at least 0, but got {negative_guidance}.")
        if not start_guidance >= 0:
            raise ValueError(f"start_guidance must be at least 0, but got {start_guidance}.")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, but got {steps}.")
        for name, value, known in (
            ("base", base, ("empty", "concept", "anchor")),
            ("sampler", sampler, ("student", "teacher")),
            ("pairing", pairing, ("exact", "ldm")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, but got {value!r}.")
        self.negative_guidance, self.base = negative_guidance, base
        self.start_guidance, self.steps, self.sampler, self.pairing = start_guidance, steps, sampler, pairing

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of prompts, at one noise level."""
        model, rows = as_text_to_image(module), batch["forget"]
        ids = rows["anchor_input_ids" if self.base == "anchor" else "input_ids"]
        # The teacher goes first: exchanging weights would spoil a graph that already holds them.
        with self.teacher(module):
            empty, concept = empty_states(model, len(ids)), encode(model, rows["input_ids"])
            states = encode(model, ids) if self.base == "anchor" else concept
            if self.sampler == "teacher":
                latents, timestep = self.latents(module, states, empty)
        if self.sampler == "student":
            with evaluating(module):
                latents, timestep = self.latents(module, states, empty)
        with self.teacher(module):
            target = self.target(module, latents, timestep, empty, concept, states)
        output = unet_output(model, latents, timestep, encode(model, ids))
        return {"loss": F.mse_loss(output, target)}

    def latents(self, module: LightningModule, states: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """Latents on their way to an image of the prompts, and their timestep."""
        return partial_sample(
            as_text_to_image(module),
            states,
            empty,
            self.noise(module, len(states)),
            self.generator(module),
            steps=self.steps,
            guidance=self.start_guidance,
            pairing=self.pairing,
        )

    def target(
        self, module: LightningModule, latents: Tensor, timestep: Tensor, empty: Tensor, concept: Tensor, states: Tensor
    ) -> Tensor:
        """What the student is to predict; the module is the teacher now."""
        asked = [empty, concept, states] if self.base == "anchor" else [empty, concept]
        outputs = unet_output(
            as_text_to_image(module), latents.repeat(len(asked), 1, 1, 1), timestep, torch.cat(asked)
        ).chunk(len(asked))
        base = None if self.base == "empty" else outputs[-1]
        return esd_target(outputs[0], outputs[1], base, eta=self.negative_guidance)
