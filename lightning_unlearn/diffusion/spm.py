"""SPM: concept semi-permeable membranes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.adapter_objective import AdapterObjective
from lightning_unlearn.diffusion.engine.adapters import LowRankAdapters
from lightning_unlearn.diffusion.engine.denoising import anchors
from lightning_unlearn.diffusion.engine.draws import Draws, row_numbers
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.functional.diffusion.esd import esd_target
from lightning_unlearn.functional.diffusion.spm import latent_anchors
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["SPM"]

Neutral = Literal["empty", "anchor"]


class SPM(AdapterObjective):
    r"""SPM: rank-one adapters that erase a concept and leave distant concepts as they are.

    $$\mathcal{L} = \big\| e_\theta(z_t, t, c_p) - \big(e^*_n - \eta\,(e^*_p - e^*_n)\big) \big\|^2
    + \lambda\, \big\| e_\theta(z_t, t, c_a) - e^*_a \big\|^2$$

    Means over all elements. $e^*$ is the model without adapters, for the concept $c_p$, for what is neutral $c_n$, and
    for anchors $c_a$, see [`latent_anchors`][lightning_unlearn.functional.diffusion.spm.latent_anchors]. The latents
    $z_t$ come from a sampler that draws the concept and stops at a random step, so only prompts are needed.

    The adapters are on all linear layers and convolutions of the UNet's transformers, and are all that trains, whatever
    else the module would train. The paper trains them at a learning rate of 1e-4 for 3000 steps. With ``merge`` they
    are added to the weights when training ends and in each checkpoint, which therefore loads without them; a resumed
    run separates them again. Without ``merge``, the module is the same as before afterwards, and ``adapters`` holds
    the adapters:

        spm = SPM(merge=False)
        Trainer(callbacks=[spm], max_steps=3000).fit(module, prompts)
        spm.adapters.save("van-gogh.safetensors")   # a LoRA file, see LowRankAdapters

    Args:
        negative_guidance: $\eta \ge 0$.
        neutral: What the concept becomes: ``"empty"``, the empty prompt, or ``"anchor"``, the row's own anchor.
        anchors: Number of anchors $c_a$ for each row.
        anchor_weight: $\lambda \ge 0$.
        rank: Rank of each adapter.
        alpha: Numerator of the adapters' scale, which is ``alpha / rank``.
        merge: Whether the adapters become part of the weights.
        start_guidance: Guidance of the sampler that makes the latents.
        steps: Steps of that sampler.
        seed: Seed of the adapters, the anchors, the noise and the noise levels.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: If the module's optimizer does not take the adapters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SPM()], max_steps=3000, logger=False, accelerator="cpu")

    References:
        Lyu et al., *One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications*,
        arXiv:2312.16145.
    """

    needs = Needs(roles=("forget",))
    separable = True

    def __init__(
        self,
        negative_guidance: float = 1.0,
        neutral: Neutral = "empty",
        anchors: int = 4,
        anchor_weight: float = 1000.0,
        rank: int = 1,
        alpha: float = 1.0,
        merge: bool = True,
        start_guidance: float = 3.0,
        steps: int = 30,
        seed: int = 0,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(merge, seed)
        self.keep_reference = keep_reference
        self.negative_guidance = at_least("negative_guidance", negative_guidance, 0)
        self.neutral = one_of("neutral", neutral, Neutral)
        self.anchors, self.anchor_weight = at_least("anchors", anchors, 1), at_least("anchor_weight", anchor_weight, 0)
        self.rank, self.alpha = at_least("rank", rank, 1), above("alpha", alpha, 0)
        self.start_guidance, self.steps = at_least("start_guidance", start_guidance, 0), at_least("steps", steps, 1)

    def make_adapters(self, model: TextToImage) -> dict[str, LowRankAdapters]:
        """One set, on all linear layers and convolutions of the transformers."""
        return {"spm": LowRankAdapters(model.unet, self.rank, self.alpha, seed=self.seed)}

    @property
    def adapters(self) -> LowRankAdapters:
        """The adapters, since training was set up."""
        return self.sets["spm"]

    @contextmanager
    def teacher(self, module: LightningModule) -> Iterator[None]:
        """The module without its adapters, in evaluation mode and without gradients."""
        with self.adapters.scaled(0), evaluating(module):
            yield

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of prompts, at one noise level."""
        model, rows, draws = as_text_to_image(module), batch["forget"], self.draws(module)
        size = len(rows["input_ids"])
        with self.teacher(module):
            empty, concept = empty_states(model, size), encode(model, rows["input_ids"])
            neutral = empty if self.neutral == "empty" else encode(model, anchors("SPM", rows))
            sampled = self.sample_anchors(concept, draws)
        with evaluating(module):
            latents, timestep = self.sample(module, concept, empty, self.steps, self.start_guidance)
        repeated = latents.repeat_interleave(self.anchors, 0)
        with self.teacher(module):
            outputs = unet_output(
                model, torch.cat([latents, latents, repeated]), timestep, torch.cat([neutral, concept, sampled])
            )
            target = esd_target(outputs[:size], outputs[size : 2 * size], eta=self.negative_guidance)
        terms = {
            "forget": ("erase", 1.0, latents, concept, target),
            "retain": ("anchor", self.anchor_weight, repeated, sampled, outputs[2 * size :]),
        }

        def losses(roles: Sequence[str]) -> dict[str, Tensor]:
            names, weights, points, states, targets = zip(*(terms[role] for role in roles), strict=True)
            student = unet_output(model, torch.cat(points), timestep, torch.cat(states)).split(list(map(len, points)))
            parts = {name: F.mse_loss(*pair) for name, *pair in zip(names, student, targets, strict=True)}
            loss = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
            return {"loss": loss, **parts}

        return self.by_term(module, losses, ("forget", "retain"))

    def sample_anchors(self, concept: Tensor, draws: Draws) -> Tensor:
        """Anchors of each row one after the other, shape ``(B * anchors, L, D)``."""
        generators = [keyed_generator(draws.seed, 8, draws.batch, row) for row in row_numbers(len(concept))]
        pairs = zip(concept, generators, strict=True)
        return torch.cat([latent_anchors(states, self.anchors, generator) for states, generator in pairs])
