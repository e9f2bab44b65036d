"""Concept semi-permeable membranes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_unlearn.callbacks.diffusion.objective import DiffusionObjective
from lightning_unlearn.callbacks.reference import evaluating
from lightning_unlearn.diffusion.adapters import Membranes
from lightning_unlearn.diffusion.denoising import batch_number, row_numbers
from lightning_unlearn.diffusion.model import as_text_to_image, unet_output
from lightning_unlearn.diffusion.sampling import partial_sample
from lightning_unlearn.diffusion.text import empty_states, encode
from lightning_unlearn.functional.diffusion import esd_target, keyed_generator
from lightning_unlearn.functional.diffusion.spm import latent_anchors
from lightning_unlearn.scores import Batch

__all__ = ["SPM"]


class SPM(DiffusionObjective):
    r"""SPM: adapters of rank one erase a concept, and are held to leave everything far from it as it is.

    $$\mathcal{L} = \big\| e_\theta(z_t, t, c_p) - \big(e^*_n - \eta\,(e^*_p - e^*_n)\big) \big\|^2
    + \lambda\, \big\| e_\theta(z_t, t, c_a) - e^*_a \big\|^2$$

    Means over all elements. $e^*$ is the model without adapters, for the concept $c_p$, for what is neutral $c_n$, and
    for anchors $c_a$, see [`latent_anchors`][lightning_unlearn.functional.diffusion.spm.latent_anchors]. The latents
    $z_t$ come from a sampler that draws the concept and stops at a random step, so prompts are all that is needed.

    The adapters are on all linear layers and convolutions of the UNet's transformers. They are put on before the
    optimizer is made, and are all that trains, whatever else the module would train. The paper trains them at a
    learning rate of 1e-4 for 3000 steps. With ``merge`` they are added to the weights when training ends, and in each
    checkpoint, which loads without them; a resumed run takes them apart again. Without, the module is afterwards what
    it was before, and ``membranes`` holds the adapters:

        spm = SPM(merge=False)
        Trainer(callbacks=[spm], max_steps=3000).fit(module, prompts)
        spm.membranes.save("van-gogh.safetensors")   # a LoRA file, see Membranes

    Args:
        negative_guidance: $\eta \ge 0$.
        neutral: What the concept is led to: ``"empty"``, the empty prompt, or ``"anchor"``, the row's own anchor.
        anchors: Number of anchors $c_a$ for each row.
        anchor_weight: $\lambda \ge 0$.
        rank: Rank of each adapter.
        alpha: What they are scaled by, times rank.
        merge: Whether the adapters become part of the weights.
        start_guidance: Guidance of the sampler that makes the latents.
        steps: Steps of that sampler.
        seed: Seed of the adapters, the anchors, the noise and the noise levels.

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

    def __init__(
        self,
        negative_guidance: float = 1.0,
        neutral: Literal["empty", "anchor"] = "empty",
        anchors: int = 4,
        anchor_weight: float = 1000.0,
        rank: int = 1,
        alpha: float = 1.0,
        merge: bool = True,
        start_guidance: float = 3.0,
        steps: int = 30,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        for name, value, least in (
            ("negative_guidance", negative_guidance, 0),
            ("anchors", anchors, 1),
            ("anchor_weight", anchor_weight, 0),
            ("rank", rank, 1),
            ("start_guidance", start_guidance, 0),
            ("steps", steps, 1),
        ):
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, but got {value}.")
        if not alpha > 0:
            raise ValueError(f"alpha must be greater than 0, but got {alpha}.")
        if neutral not in ("empty", "anchor"):
            raise ValueError(f"neutral must be 'empty' or 'anchor', but got {neutral!r}.")
        self.negative_guidance, self.neutral = negative_guidance, neutral
        self.anchors, self.anchor_weight, self.rank, self.alpha, self.merge = anchors, anchor_weight, rank, alpha, merge
        self.start_guidance, self.steps = start_guidance, steps
        self.membranes: Membranes | None = None
        """The adapters, since training was set up."""
        self._base: dict[str, Tensor] = {}
        self._frozen: list[nn.Parameter] = []
        self._hooks: list[Any] = []

    def roles(self) -> tuple[str, ...]:
        """Prompts of the concept are all that is needed."""
        return ("forget",)

    def reads_reference_logits(self) -> bool:
        """The teacher is the model without adapters: nothing has to be kept."""
        return False

    @contextmanager
    def teacher(self, module: LightningModule) -> Iterator[None]:
        """The module without its adapters, in evaluation mode and without gradients."""
        assert self.membranes is not None
        with self.membranes.scaled(0), evaluating(module):
            yield

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the adapters on, and freeze all else."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._frozen = [p for p in pl_module.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._base = {}
        self.membranes = Membranes(as_text_to_image(pl_module).unet, self.rank, self.alpha, seed=self.seed)
        if self.merge:
            self._hooks = [
                layer.register_state_dict_post_hook(_merged(self.membranes.adapters[path]))
                for path, layer in self.membranes.layers.items()
            ]

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the adapters train; in a resumed run, take them apart from the weights."""
        assert self.membranes is not None
        restored = self._restored
        super().on_train_start(trainer, pl_module)
        trained = {id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        if not all(id(p) in trained for a in self.membranes.adapters.values() for p in a.parameters()):
            raise MisconfigurationException(
                f"The optimizer of {type(pl_module).__name__} does not take the adapters, so nothing would be erased. "
                "Let configure_optimizers return one over [p for p in self.parameters() if p.requires_grad]."
            )
        if restored is None:
            return
        self.membranes.load_state_dict(restored["adapters"])
        for path, weight in restored["base"].items():
            self.membranes.layers[path].weight.copy_(weight)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the adapters."""
        assert self.membranes is not None
        if self.merge:
            self._base = self._weights()
            self._unhook()
            self.membranes.merge()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._take_off()
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._take_off()
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """The adapters, and where they are merged the weights without them."""
        if self.membranes is None:
            return super().state_dict()
        base = (self._base or self._weights()) if self.merge else {}
        return {**super().state_dict(), "adapters": self.membranes.state_dict(), "base": base}

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of prompts, at one noise level."""
        model, rows = as_text_to_image(module), batch["forget"]
        with self.teacher(module):
            size = len(rows["input_ids"])
            empty, concept = empty_states(model, size), encode(model, rows["input_ids"])
            neutral = empty if self.neutral == "empty" else encode(model, rows["anchor_input_ids"])
            anchors = self.sample_anchors(module, concept)
        with evaluating(module):
            latents, timestep = partial_sample(
                model,
                concept,
                empty,
                self.noise(module, size),
                self.generator(module),
                steps=self.steps,
                guidance=self.start_guidance,
            )
        repeated = latents.repeat_interleave(self.anchors, 0)
        with self.teacher(module):
            outputs = unet_output(
                model,
                torch.cat([latents, latents, repeated]),
                timestep,
                torch.cat([neutral, concept, anchors]),
            )
            target = esd_target(outputs[:size], outputs[size : 2 * size], eta=self.negative_guidance)
        student = unet_output(model, torch.cat([latents, repeated]), timestep, torch.cat([concept, anchors]))
        erase, anchor = F.mse_loss(student[:size], target), F.mse_loss(student[size:], outputs[2 * size :])
        return {"loss": erase + self.anchor_weight * anchor, "erase": erase, "anchor": anchor}

    def sample_anchors(self, module: LightningModule, concept: Tensor) -> Tensor:
        """Anchors of each row one after the other, shape ``(B * anchors, L, D)``."""
        key = (self.seed, 8, batch_number(module))
        drawn = [
            latent_anchors(states, self.anchors, keyed_generator(*key, row))
            for states, row in zip(concept, row_numbers(len(concept)), strict=True)
        ]
        return torch.cat(drawn)

    def _weights(self) -> dict[str, Tensor]:
        assert self.membranes is not None
        return {path: la.weight.detach().to("cpu", copy=True) for path, la in self.membranes.layers.items()}

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _take_off(self) -> None:
        self._unhook()
        if self.membranes is not None:
            self.membranes.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []


def _merged(adapter: Any) -> Any:
    def hook(layer: Any, state: dict[str, Tensor], prefix: str, _: Any) -> None:
        state[f"{prefix}weight"] = layer.weight.detach() + adapter.change().detach().to(layer.weight)

    return hook
