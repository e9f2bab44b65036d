"""AdvUnlearn: ESD with adversarial training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.attacks.soft_prompt import Prompts, SoftPromptAttacker
from lightning_unlearn.diffusion.engine.draws import Draws
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image, unet_output, unet_outputs
from lightning_unlearn.diffusion.engine.sampling import Pairing, Point, partial_samples
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.esd import esd_target

__all__ = ["AdvUnlearn"]

RetainMode = Literal["reg", "iter"]

# What a draw is for, beside the forget prompts' own latents.
_RETAIN, _ATTACK = 1, 2


class _Scene(NamedTuple):
    """A batch at one noise level, with the original model's outputs there."""

    prompts: Prompts
    keep: Prompts | None
    point: Point
    empty: Tensor
    concept: Tensor
    kept_point: Point
    kept: Tensor | None


class AdvUnlearn(DiffusionObjective):
    r"""AdvUnlearn: erase a concept under adversarial prompts, so that it stays erased.

    $$\min_\theta\; \mathcal{L}_u(\theta, \delta^*) + \gamma\,\mathcal{L}_r(\theta), \qquad
    \delta^* = \arg\min_\delta \big\| e_\theta(z_t, t, E_\theta(x \oplus \delta)) - e^*(z_t, t, E^*(x)) \big\|^2$$

    $$\mathcal{L}_u = \big\| e_\theta(z_t, t, E_\theta(x \oplus \delta^*)) - \big(e^*_0 - \eta\,(e^*_p - e^*_0)\big)
    \big\|^2, \qquad
    \mathcal{L}_r = \big\| e_\theta(z^r_t, t, E_\theta(x_r)) - e^*(z^r_t, t, E^*(x_r)) \big\|^2$$

    Means over all elements. The attacker, a [`SoftPromptAttacker`][lightning_unlearn.SoftPromptAttacker], searches for
    soft tokens $\delta$ with which the model draws the concept as the original model would. The model then learns
    ESD's target with these tokens in the prompt $x$, and to stay as it was on the prompts to keep $x_r$.

    The module chooses which weights train. ``LitTextToImage(trainable="text_encoder")``, or some of its layers by
    ``TextEncoderWeights(layers=[0])``, is the paper's choice and gives a text encoder that other models can use, see
    [`export_text_encoder`][lightning_unlearn.export_text_encoder]. Weights of the UNet can be trained as well. Each row
    of a batch is a concept with its own tokens, so to erase several concepts, give several forget prompts.

    The paper's runs have ``gamma=0.3`` for nudity and 0.5 for styles and objects, ``batch_size=1``,
    ``retain_batch_size=5`` and 1000 steps. ``unlearn/attack_first`` and ``unlearn/attack_last`` are the attacker's loss
    before and after the attack, on the latents that the step trains on.

    Args:
        eta: Negative guidance $\eta \ge 0$ of the target.
        gamma: Weight $\gamma \ge 0$ of the prompts to keep; at 0 there need not be any.
        warmup: Steps before the first attack; until then the prompts are as they are.
        attack: The attacker; by default ``SoftPromptAttacker()``, the paper's. With ``SoftPromptAttacker(steps=0)`` it
            is ESD with prompts to keep.
        retain_mode: ``"reg"``: $\mathcal{L}_u + \gamma \mathcal{L}_r$ (the paper's results). ``"iter"``: of two steps
            of the optimizer the first lowers $\mathcal{L}_u$, the second $\mathcal{L}_r$, whatever ``gamma`` is. A
            pair counts as one step of ``warmup`` and of the attack's ``refresh_every``, but as two of ``max_steps``,
            and the second's forget rows are not used.
        start_guidance: Guidance of the sampler that makes the latents.
        steps: Steps of that sampler.
        pairing: ``"exact"``, or ``"ldm"`` for the authors' timesteps, see
            [`partial_samples`][lightning_unlearn.diffusion.engine.sampling.partial_samples].
        seed: Seed of the noise, the noise levels and the initial tokens.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range, or the tokens do not fit into a prompt.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AdvUnlearn()], max_steps=1000, logger=False, accelerator="cpu")

    References:
        Zhang et al., *Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models*,
        arXiv:2405.15234.
    """

    private = ("snapshot", "caches", "attack")
    separable = True

    def __init__(
        self,
        eta: float = 1.0,
        gamma: float = 0.5,
        warmup: int = 200,
        attack: SoftPromptAttacker | None = None,
        retain_mode: RetainMode = "reg",
        start_guidance: float = 3.0,
        steps: int = 50,
        pairing: Pairing = "exact",
        seed: int = 0,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(seed)
        self.keep_reference = keep_reference
        self.eta, self.gamma = at_least("eta", eta, 0), at_least("gamma", gamma, 0)
        self.warmup, self.attack = at_least("warmup", warmup, 0), attack or SoftPromptAttacker()
        self.retain_mode = one_of("retain_mode", retain_mode, RetainMode)
        self.start_guidance = at_least("start_guidance", start_guidance, 0)
        self.steps, self.pairing = at_least("steps", steps, 1), one_of("pairing", pairing, Pairing)
        if not (gamma or retain_mode == "iter"):
            self.needs = replace(self.needs, roles=("forget",))

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Start without soft tokens."""
        super().begin(trainer, module)
        self.attack.load_state_dict({}, as_text_to_image(module))

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue with the soft tokens of the checkpoint."""
        super().restore(state, trainer, module)
        self.attack.load_state_dict(state["attack"], as_text_to_image(module))

    def state_dict(self) -> dict[str, Any]:
        """The teacher, the passes made, and the soft tokens."""
        return {**super().state_dict(), "attack": self.attack.state_dict()}

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of prompts, at one noise level."""
        number, draws = module.global_step, self.draws(module)
        if self.retain_mode == "iter":
            if number % 2:
                return self._retain_step(module, batch["retain"], draws)
            number //= 2
        lengths = self.attack.lengths(batch["forget"])
        if self.attack.is_due(number - self.warmup, batch["forget"]):
            return self._attacked_step(module, batch, lengths, draws)
        scene, _ = self._scene(module, batch, lengths, draws)
        tokens = self.attack.known(batch["forget"]) if self.attack.steps and number >= self.warmup else None
        return self._losses(module, scene, tokens)[0]

    def _retain_step(self, module: LightningModule, rows: Batch, draws: Draws) -> dict[str, Tensor]:
        """Lower the distance from the original model on the prompts to keep."""
        model, keep = as_text_to_image(module), self._prompts(module, rows)
        with evaluating(module):
            noise = draws.noise(model, len(keep.ids), _RETAIN)
            (point,) = self._sample(model, keep, noise, [draws.generator()])
        with self.teacher(module):
            target = unet_output(model, *point, keep.concept)
        loss = F.mse_loss(unet_output(model, *point, encode(model, keep.ids)), target)
        return {"loss": loss, "retain": loss}

    def _attacked_step(
        self, module: LightningModule, batch: dict[str, Batch], lengths: Tensor, draws: Draws
    ) -> dict[str, Tensor]:
        """Attack, then learn with the tokens that were found."""
        model, rows = as_text_to_image(module), batch["forget"]
        along = range(self.attack.steps) if self.attack.latents == "trajectory" else ()
        scene, path = self._scene(module, batch, lengths, draws, [draws.generator(_ATTACK, step) for step in along])
        start = self.attack.initial(module, rows, draws)
        tokens = self.attack.search(module, scene.prompts, start, self._points(module, scene.prompts, draws, path))
        self.attack.remember(rows, tokens)
        with evaluating(module):
            first = unet_output(model, *scene.point, self.attack.states(model, scene.prompts, start))
        parts, last = self._losses(module, scene, tokens)
        attack = {"attack_first": F.mse_loss(first, scene.concept), "attack_last": F.mse_loss(last, scene.concept)}
        return parts | attack

    def _scene(
        self,
        module: LightningModule,
        batch: dict[str, Batch],
        lengths: Tensor,
        draws: Draws,
        further: Sequence[torch.Generator] = (),
    ) -> tuple[_Scene, list[Point]]:
        """The batch at a noise level, and for each further generator a point of the same trajectory."""
        # All passes of the teacher come before the student's: exchanging weights would spoil a graph that holds them.
        model, prompts = as_text_to_image(module), self._prompts(module, batch["forget"])._replace(lengths=lengths)
        keep = self._prompts(module, batch["retain"]) if self.gamma > 0 and self.retain_mode == "reg" else None
        count = len(prompts.ids)
        with evaluating(module):
            both, noise = prompts, draws.noise(model, count)
            if keep is not None:  # they share the passes of the sampler
                both = Prompts(*(torch.cat(pair) for pair in zip(prompts, keep, strict=True)))
                noise = torch.cat([noise, draws.noise(model, len(keep.ids), _RETAIN)])
            (latents, timestep), *path = self._sample(model, both, noise, [draws.generator(), *further], count)
        point, kept_point = (latents[:count], timestep), (latents[count:], timestep)
        with self.teacher(module):
            e_0, e_p = unet_outputs(model, *point, prompts.empty, prompts.concept)
            kept = None if keep is None else unet_output(model, *kept_point, keep.concept)
        return _Scene(prompts, keep, point, e_0, e_p, kept_point, kept), path

    def _losses(
        self, module: LightningModule, scene: _Scene, tokens: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses with soft tokens in the prompts, and the model's output for these, without gradient."""
        model, outputs = as_text_to_image(module), []
        target = esd_target(scene.empty, scene.concept, eta=self.eta)

        def term() -> dict[str, Tensor]:
            output = unet_output(model, *scene.point, self.attack.states(model, scene.prompts, tokens))
            outputs.append(output.detach())
            forget = F.mse_loss(output, target)
            return {"loss": forget, "forget": forget}

        parts = self.smoothed(module, term)
        loss = parts["loss"]
        if scene.keep is not None and scene.kept is not None:
            parts["retain"] = F.mse_loss(
                unet_output(model, *scene.kept_point, encode(model, scene.keep.ids)), scene.kept
            )
            loss = loss + self.gamma * parts["retain"]
        return {**parts, "loss": loss}, outputs[0]

    def _points(
        self, module: LightningModule, prompts: Prompts, draws: Draws, path: list[Point]
    ) -> Callable[[int], tuple[Point, Tensor]]:
        """Where each step of the attack compares the model with the original model."""
        model = as_text_to_image(module)
        if path:
            with self.teacher(module):
                targets = self.attack.targets(model, prompts.concept, path)
            return lambda step: (path[step], targets[step])

        def fresh(step: int) -> tuple[Point, Tensor]:
            noise = draws.noise(model, len(prompts.ids), _ATTACK, step)
            (point,) = self._sample(model, prompts, noise, [draws.generator(_ATTACK, step)])
            with self.teacher(module):
                return point, unet_output(model, *point, prompts.concept)

        return fresh

    def _prompts(self, module: LightningModule, rows: Batch) -> Prompts:
        model, ids = as_text_to_image(module), rows["input_ids"]
        with self.teacher(module):
            return Prompts(ids, ids.new_zeros(len(ids)), encode(model, ids), empty_states(model, len(ids)))

    def _sample(
        self,
        model: TextToImage,
        prompts: Prompts,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        rows: int | None = None,
    ) -> list[Point]:
        return partial_samples(
            model,
            prompts.concept,
            prompts.empty,
            noise,
            generators,
            steps=self.steps,
            guidance=self.start_guidance,
            pairing=self.pairing,
            rows=rows,
        )
