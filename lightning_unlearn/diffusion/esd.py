"""ESD: erased stable diffusion."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.denoising import anchors
from lightning_unlearn.diffusion.engine.model import as_text_to_image, unet_output, unet_outputs
from lightning_unlearn.diffusion.engine.sampling import Pairing
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.esd import esd_target

__all__ = ["ESD"]

Base = Literal["empty", "concept", "anchor"]
Sampler = Literal["student", "teacher"]


class ESD(DiffusionObjective):
    r"""ESD: trains negative guidance into the weights.

    $$\mathcal{L} = \big\| e_\theta(z_t, t, c_p) - \big(e^*_0 - \eta\,(e^*_p - e^*_0)\big) \big\|^2$$

    Mean over all elements. $e^*$ is the original model for the concept $c_p$ and for the empty prompt. The latents
    $z_t$ come from a sampler that draws the concept and stops at a random step, so prompts are all that is needed. What
    trains is the module's choice: ``LitTextToImage(trainable="xattn")`` makes it ESD-x, for styles and names;
    ``"noxattn"`` ESD-u, for what no prompt names, such as nudity; ``"kv"`` ESD-x-strict; or the text encoder.

    The authors' newer code is ``ESD(negative_guidance=2.0, base="concept", sampler="teacher")`` on
    ``LitTextToImage(compat="diffusers", lr=5e-5)``. The target with base ``"concept"`` and $\eta + 1$ is that with base
    ``"empty"`` and $\eta$.

    Args:
        negative_guidance: $\eta \ge 0$; 1 in the paper.
        base: Output from which the concept is subtracted: ``"empty"``, $e^*_0$ (the paper); ``"concept"``, $e^*_p$; or
            ``"anchor"``, the output for the row's anchor, which is then also the prompt that is trained: with the
            concept "hat" and the anchor "cowboy", cowboys lose their hats and hats stay.
        start_guidance: Guidance of the sampler that makes the latents.
        steps: Steps of that sampler.
        sampler: Whose latents: ``"student"``, the model as it is now (the paper), or ``"teacher"``.
        pairing: ``"exact"``, or ``"ldm"`` for the authors' timesteps, see
            [`partial_samples`][lightning_unlearn.diffusion.engine.sampling.partial_samples].
        seed: Seed of the noise and of the noise levels.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ESD()], max_steps=1000, logger=False, accelerator="cpu")

    References:
        Gandikota et al., *Erasing Concepts from Diffusion Models*, arXiv:2303.07345.
    """

    needs = Needs(roles=("forget",), snapshot=True)
    separable = True

    def __init__(
        self,
        negative_guidance: float = 1.0,
        base: Base = "empty",
        start_guidance: float = 3.0,
        steps: int = 50,
        sampler: Sampler = "student",
        pairing: Pairing = "exact",
        seed: int = 0,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(seed)
        self.keep_reference = keep_reference
        self.negative_guidance = at_least("negative_guidance", negative_guidance, 0)
        self.base, self.sampler = one_of("base", base, Base), one_of("sampler", sampler, Sampler)
        self.start_guidance, self.steps = at_least("start_guidance", start_guidance, 0), at_least("steps", steps, 1)
        self.pairing = one_of("pairing", pairing, Pairing)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of prompts, at one noise level."""
        model, rows = as_text_to_image(module), batch["forget"]
        ids = anchors("ESD", rows) if self.base == "anchor" else rows["input_ids"]
        # The teacher goes first: exchanging weights would spoil a graph that already holds them.
        with self.teacher(module):
            empty, concept = empty_states(model, len(ids)), encode(model, rows["input_ids"])
            states = encode(model, ids) if self.base == "anchor" else concept
        with self.teacher(module) if self.sampler == "teacher" else evaluating(module):
            point = self.sample(module, states, empty, self.steps, self.start_guidance, self.pairing)
        with self.teacher(module):
            anchor = (states,) if self.base == "anchor" else ()
            outputs = unet_outputs(model, *point, empty, concept, *anchor)
            base = None if self.base == "empty" else outputs[-1]
            target = esd_target(outputs[0], outputs[1], base, eta=self.negative_guidance)
        return self.smoothed(
            module, lambda: {"loss": F.mse_loss(unet_output(model, *point, encode(model, ids)), target)}
        )
