"""Adversarial training of concept erasure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn.core.distributed import all_true, gather_objects
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.denoising import batch_number, row_numbers
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image, latent_shape, unet_output
from lightning_unlearn.diffusion.engine.sampling import Pairing, partial_sample, trajectory
from lightning_unlearn.diffusion.engine.text import empty_states, encode, inject, tokenize
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.ddim import ldm_timesteps
from lightning_unlearn.functional.diffusion.esd import esd_target
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.diffusion.soft_prompt_attack import (
    AttackNorm,
    AttackRule,
    check_attack,
    soft_prompt_attack,
)
from lightning_unlearn.functional.diffusion.soft_tokens import Placement, insert_tokens
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["AdvUnlearn"]

# What a draw is for, beside the concepts' own latents.
_RETAIN, _ATTACK, _TOKENS = 1, 2, 3
_TEACHER_ROWS = 8  # of a pass without gradients over latents of a trajectory


class _Prompts(NamedTuple):
    """Forget rows as the attack sees them."""

    ids: Tensor
    lengths: Tensor
    concept: Tensor
    empty: Tensor


class AdvUnlearn(DiffusionObjective):
    r"""AdvUnlearn: erase a concept under prompts that an attacker has worked on, so that it stays erased.

    $$\min_\theta\; \mathcal{L}_u(\theta, \delta^*) + \gamma\,\mathcal{L}_r(\theta), \qquad
    \delta^* = \arg\min_\delta \big\| e_\theta(z_t, t, E_\theta(x \oplus \delta)) - e^*(z_t, t, E^*(x)) \big\|^2$$

    $$\mathcal{L}_u = \big\| e_\theta(z_t, t, E_\theta(x \oplus \delta^*)) - \big(e^*_0 - \eta\,(e^*_p - e^*_0)\big)
    \big\|^2, \qquad
    \mathcal{L}_r = \big\| e_\theta(z^r_t, t, E_\theta(x_r)) - e^*(z^r_t, t, E^*(x_r)) \big\|^2$$

    Means over all elements. The attacker looks for soft tokens $\delta$ with which the model draws the concept as the
    starting model would; the model then learns ESD's target with them in the prompt $x$, and to stay as it was on the
    prompts to keep $x_r$. What trains is the module's choice: ``LitTextToImage(trainable="text_encoder")``, or some
    layers of it by ``TextEncoderWeights(layers=[0])``, as in the paper, which makes a text encoder that other models
    can take over, see [`export_text_encoder`][lightning_unlearn.export_text_encoder]; or weights of
    the UNet. Each row of a batch is a concept with tokens of its own, so several concepts are several forget prompts.

    The paper's runs have ``gamma=0.3`` for nudity and 0.5 for styles and objects, ``batch_size=1``,
    ``retain_batch_size=5`` and 1000 steps. Three things in the authors' code are not done here: gradients of the
    attack are not summed over its steps, its last step is not dropped, and the length of a concept is its number of
    tokens, not of words. ``unlearn/attack_first`` and ``unlearn/attack_last`` are the attacker's loss before and after
    the attack, on the latents that the step trains on.

    Args:
        eta: Negative guidance $\eta \ge 0$ of the target.
        gamma: Weight $\gamma \ge 0$ of the prompts to keep; at 0 there need not be any.
        warmup: Steps before the first attack; until then the prompts are as they are.
        perturb: What the tokens are among: ``"embeddings"``, the words' embeddings ahead of the text encoder; or
            ``"states"``, the text states behind it.
        placement: Where they go, see
            [`insert_tokens`][lightning_unlearn.functional.diffusion.soft_tokens.insert_tokens].
        tokens: Number ``k`` of soft tokens; with ``placement="add"`` one for each word.
        init: ``"random"``: embeddings of random tokens of the vocabulary, or with ``perturb="states"`` the states of a
            prompt made of them. ``"latest"``: those that the row's last attack found.
        refresh_every: Steps until a row's tokens are looked for anew.
        attack_steps: Steps $K$ of an attack; 0 for none, which is ESD with prompts to keep.
        attack_step_size: Its step size.
        attack_rule: ``"adam"``; ``"sign"``, which with ``attack_steps=1`` is the fast form; or ``"normalized"``, see
            [`soft_prompt_attack`][lightning_unlearn.functional.diffusion.soft_prompt_attack.soft_prompt_attack].
        attack_radius: Radius of the ball around the initial tokens; by default there is none.
        attack_norm: The ball's norm, ``"linf"`` or ``"l2"``.
        attack_latents: ``"fresh"``: each step of the attack samples latents of its own (the paper). ``"trajectory"``:
            they are drawn from the one way from noise to an image that the step's own latents lie on, for a tenth of
            the passes.
        retain_mode: ``"reg"``: $\mathcal{L}_u + \gamma \mathcal{L}_r$ (the paper's results). ``"iter"``: of two steps
            of the optimizer the first lowers $\mathcal{L}_u$, the second $\mathcal{L}_r$, whatever ``gamma`` is. A
            pair counts as one step of ``warmup`` and ``refresh_every``, but as two of ``max_steps``, and the second's
            forget rows are passed over.
        start_guidance: Guidance of the sampler that makes the latents.
        steps: Steps of that sampler.
        pairing: ``"exact"``, or ``"ldm"`` for the authors' timesteps, see
            [`partial_sample`][lightning_unlearn.diffusion.engine.sampling.partial_sample].
        seed: Seed of the noise, the noise levels and the initial tokens.

    Raises:
        ValueError: If an argument is out of range, or the tokens do not fit into a prompt.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AdvUnlearn()], max_steps=1000, logger=False, accelerator="cpu")

    References:
        Zhang et al., *Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models*,
        arXiv:2405.15234.
    """

    def __init__(
        self,
        eta: float = 1.0,
        gamma: float = 0.5,
        warmup: int = 200,
        perturb: Literal["embeddings", "states"] = "embeddings",
        placement: Placement = "prefix",
        tokens: int = 1,
        init: Literal["random", "latest"] = "random",
        refresh_every: int = 1,
        attack_steps: int = 30,
        attack_step_size: float = 1e-3,
        attack_rule: AttackRule = "adam",
        attack_radius: float | None = None,
        attack_norm: AttackNorm = "linf",
        attack_latents: Literal["fresh", "trajectory"] = "fresh",
        retain_mode: Literal["reg", "iter"] = "reg",
        start_guidance: float = 3.0,
        steps: int = 50,
        pairing: Pairing = "exact",
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        for name, value, least in (
            ("eta", eta, 0),
            ("gamma", gamma, 0),
            ("warmup", warmup, 0),
            ("tokens", tokens, 1),
            ("refresh_every", refresh_every, 1),
            ("start_guidance", start_guidance, 0),
            ("steps", steps, 1),
        ):
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, but got {value}.")
        for option, choice, known in (
            ("perturb", perturb, ("embeddings", "states")),
            ("placement", placement, ("prefix", "suffix", "mid", "spread", "every_3", "replace", "add")),
            ("init", init, ("random", "latest")),
            ("attack_latents", attack_latents, ("fresh", "trajectory")),
            ("retain_mode", retain_mode, ("reg", "iter")),
            ("pairing", pairing, ("exact", "ldm")),
        ):
            if choice not in known:
                raise ValueError(f"{option} must be one of {known}, but got {choice!r}.")
        check_attack(attack_steps, attack_step_size, attack_rule, attack_radius, attack_norm)
        self.eta, self.gamma, self.warmup, self.retain_mode = eta, gamma, warmup, retain_mode
        self.perturb, self.placement, self.tokens = perturb, placement, tokens
        self.init, self.refresh_every = init, refresh_every
        self.attack_steps, self.attack_step_size, self.attack_rule = attack_steps, attack_step_size, attack_rule
        self.attack_radius, self.attack_norm, self.attack_latents = attack_radius, attack_norm, attack_latents
        self.start_guidance, self.steps, self.pairing = start_guidance, steps, pairing
        self.found: dict[int, Tensor] = {}
        """Soft tokens of each forget row by its ``index``, shape ``(k, D)``, where a later step begins with them."""
        if not (gamma or retain_mode == "iter"):
            self.needs = replace(self.needs, roles=("forget",))

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Start without soft tokens."""
        super().begin(trainer, module)
        self.found = {}

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue with the soft tokens of the checkpoint."""
        super().restore(state, trainer, module)
        self.found = dict(state["found"])
        wanted = self._count(as_text_to_image(module))
        for tokens in self.found.values():
            if len(tokens) != wanted:
                raise MisconfigurationException(
                    f"The checkpoint holds {len(tokens)} soft tokens a prompt, but the settings ask for {wanted}. "
                    "Resume with the tokens and the placement that the run was started with."
                )

    def state_dict(self) -> dict[str, Any]:
        """The teacher, the passes made, and the soft tokens."""
        return {**super().state_dict(), "found": dict(self.found)}

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of prompts, at one noise level."""
        number = module.global_step
        if self.retain_mode == "iter":
            if number % 2:
                prompts = self._prompts(module, batch["retain"])
                with evaluating(module):
                    noise = self._noise(module, len(prompts.ids), _RETAIN)
                    ((latents, timestep),) = self._sample(module, prompts, noise, [self.generator(module)])
                kept = self._retain_loss(module, prompts, latents, timestep)
                return {"loss": kept, "retain": kept}
            number //= 2
        model, rows = as_text_to_image(module), batch["forget"]
        # Teachers go first: exchanging weights would spoil a graph that already holds them.
        prompts = self._prompts(module, rows)._replace(lengths=self._lengths(rows))
        keep = self._prompts(module, batch["retain"]) if self.gamma > 0 and self.retain_mode == "reg" else None
        draws = [keyed_generator(self.seed, batch_number(module))]
        attacks = self._is_due(number, rows)
        along = attacks and self.attack_latents == "trajectory"
        if along:
            draws += [self._attack_draw(module, step) for step in range(self.attack_steps)]
        with evaluating(module):
            both, noise = prompts, self.noise(module, len(prompts.ids))
            if keep is not None:  # they share the passes of the sampler
                both = _Prompts(*(torch.cat(pair) for pair in zip(prompts, keep, strict=True)))
                noise = torch.cat([noise, self._noise(module, len(keep.ids), _RETAIN)])
            path = self._sample(module, both, noise, draws, len(prompts.ids))
        timestep = path[0][1]
        latents, kept_latents = path[0][0].split([len(prompts.ids), len(both.ids) - len(prompts.ids)])
        with self.teacher(module):
            states = torch.cat([prompts.empty, prompts.concept])
            e_0, e_p = unet_output(model, latents.repeat(2, 1, 1, 1), timestep, states).chunk(2)
            kept_target = None if keep is None else unet_output(model, kept_latents, timestep, keep.concept)
        parts: dict[str, Tensor] = {}
        tokens = self._known(rows) if self._has_begun(number) and not attacks else None
        if attacks:
            start = self._initial(module, rows)
            tokens = self._attack(module, prompts, start, path[1:] if along else None)
            self._remember(rows, tokens)
            with evaluating(module):
                output = unet_output(model, latents, timestep, self._states(model, prompts, start))
            parts["attack_first"] = F.mse_loss(output, e_p)
        output = unet_output(model, latents, timestep, self._states(model, prompts, tokens))
        parts["forget"] = loss = F.mse_loss(output, esd_target(e_0, e_p, eta=self.eta))
        if attacks:
            parts["attack_last"] = F.mse_loss(output.detach(), e_p)
        if keep is not None:
            parts["retain"] = self._retain_loss(module, keep, kept_latents, timestep, kept_target)
            loss = loss + self.gamma * parts["retain"]
        return {"loss": loss, **parts}

    # ---- prompts to keep ---------------------------------------------------------------------------------------

    def _prompts(self, module: LightningModule, rows: Batch) -> _Prompts:
        """Prompts with the teacher's text states of them and of the empty prompt."""
        model, ids = as_text_to_image(module), rows["input_ids"]
        with self.teacher(module):
            return _Prompts(ids, ids.new_zeros(len(ids)), encode(model, ids), empty_states(model, len(ids)))

    def _retain_loss(
        self,
        module: LightningModule,
        prompts: _Prompts,
        latents: Tensor,
        timestep: Tensor,
        target: Tensor | None = None,
    ) -> Tensor:
        """Distance from the teacher's output, at latents on their way to images of the prompts."""
        model = as_text_to_image(module)
        if target is None:
            with self.teacher(module):
                target = unet_output(model, latents, timestep, prompts.concept)
        return F.mse_loss(unet_output(model, latents, timestep, encode(model, prompts.ids)), target)

    # ---- the attack --------------------------------------------------------------------------------------------

    def _has_begun(self, number: int) -> bool:
        return self.attack_steps > 0 and number >= self.warmup

    def _is_due(self, number: int, rows: Batch) -> bool:
        """Whether this step attacks: when the tokens are old, or a process has a row that none are known for."""
        if not self._has_begun(number):
            return False
        if (number - self.warmup) % self.refresh_every == 0:
            return True
        return not all_true(torch.tensor(self._known(rows) is not None, device=rows["input_ids"].device))

    def _attack(
        self,
        module: LightningModule,
        prompts: _Prompts,
        start: Tensor,
        path: list[tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """Soft tokens with which the student draws what the teacher would, shape ``(B, k, D)``."""
        model = as_text_to_image(module)
        targets = self._targets(module, prompts.concept, path) if path is not None else []
        plain = None
        if self.perturb == "states":
            with evaluating(module):
                plain = encode(model, prompts.ids)

        def loss(tokens: Tensor, step: int) -> Tensor:
            if path is not None:
                (latents, timestep), target = path[step], targets[step]
            else:
                noise = self._noise(module, len(tokens), _ATTACK, step)
                ((latents, timestep),) = self._sample(module, prompts, noise, [self._attack_draw(module, step)])
                with self.teacher(module):
                    target = unet_output(model, latents, timestep, prompts.concept)
            output = unet_output(model, latents, timestep, self._states(model, prompts, tokens, plain))
            return (output - target).square().flatten(1).mean(1)

        with evaluating(module), _frozen(module):
            return soft_prompt_attack(
                loss,
                start,
                self.attack_steps,
                self.attack_step_size,
                self.attack_rule,
                self.attack_radius,
                self.attack_norm,
            )

    def _targets(self, module: LightningModule, concept: Tensor, path: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The teacher's output at each point of a path, several to a pass."""
        together = max(1, _TEACHER_ROWS // len(concept))
        targets: list[Tensor] = []
        with self.teacher(module):
            for i in range(0, len(path), together):
                part = path[i : i + together]
                latents = torch.cat([latents for latents, _ in part])
                timesteps = torch.stack([timestep for _, timestep in part]).repeat_interleave(len(concept))
                output = unet_output(
                    as_text_to_image(module), latents, timesteps, concept.repeat(len(part), *[1] * (concept.dim() - 1))
                )
                targets += output.chunk(len(part))
        return targets

    def _states(
        self, model: TextToImage, prompts: _Prompts, tokens: Tensor | None, plain: Tensor | None = None
    ) -> Tensor:
        """Text states of the prompts with the soft tokens in them."""
        if tokens is None:
            return encode(model, prompts.ids)
        if self.perturb == "states":
            states = encode(model, prompts.ids) if plain is None else plain
            return insert_tokens(states, prompts.lengths, tokens, self.placement)
        words = model.text_encoder.get_input_embeddings()(prompts.ids.to(model.text_encoder.device))
        with inject(model.text_encoder, insert_tokens(words, prompts.lengths, tokens, self.placement)):
            return encode(model, prompts.ids)

    def _initial(self, module: LightningModule, rows: Batch) -> Tensor:
        """What the attack begins with, shape ``(B, k, D)``."""
        model = as_text_to_image(module)
        embedding, count = model.text_encoder.get_input_embeddings(), self._count(model)
        ordinary = torch.ones(embedding.num_embeddings, dtype=torch.bool)
        ordinary[[i for i in model.tokenizer.all_special_ids if i < len(ordinary)]] = False
        words = ordinary.nonzero()[:, 0]
        key = (self.seed, batch_number(module), _TOKENS)
        numbers = row_numbers(len(rows["input_ids"]))
        ids = torch.stack(
            [words[torch.randint(len(words), (count,), generator=keyed_generator(*key, row))] for row in numbers]
        ).to(module.device)
        with evaluating(module):
            if self.perturb == "embeddings":
                tokens = embedding(ids).float()
            else:
                blank = tokenize(model.tokenizer, [""])["input_ids"].to(module.device).expand(len(ids), -1)
                lengths = torch.zeros(len(ids), dtype=torch.int64)
                tokens = encode(model, insert_tokens(blank, lengths, ids))[:, 1 : count + 1].float()
        if self.init == "latest":
            earlier = [self.found.get(i) for i in rows["index"].tolist()]
            tokens = torch.stack(
                [new if old is None else old.to(new) for old, new in zip(earlier, tokens, strict=True)]
            )
        return tokens

    def _count(self, model: TextToImage) -> int:
        """Soft tokens of a row. With "add" there is one for every place that a word could have."""
        return model.tokenizer.model_max_length - 2 if self.placement == "add" else self.tokens

    def _known(self, rows: Batch) -> Tensor | None:
        """Soft tokens of earlier steps, if every row has some."""
        found = [self.found.get(i) for i in rows["index"].tolist()]
        known = [tokens for tokens in found if tokens is not None]
        return torch.stack(known).to(rows["input_ids"].device) if len(known) == len(found) else None

    def _remember(self, rows: Batch, tokens: Tensor) -> None:
        """Keep the tokens where a later step asks for them; every process keeps those of all, as rows wander."""
        if self.init == "random" and self.refresh_every == 1:
            return
        numbers = row_numbers(len(tokens))
        mine = list(zip(numbers, rows["index"].tolist(), tokens.cpu(), strict=True))
        everyone = [entry for part in gather_objects(mine) for entry in part]
        self.found |= {index: found for _, index, found in sorted(everyone, key=lambda entry: entry[0])}

    def _lengths(self, rows: Batch) -> Tensor:
        """Words of each prompt, in tokens. Whether soft tokens fit is seen before the first attack is due."""
        missing = [name for name in ("attention_mask", "index") if name not in rows]
        if missing:
            raise ValueError(
                f"AdvUnlearn reads input_ids, attention_mask and index of forget rows, but {' and '.join(missing)} "
                "is missing. PromptDataModule makes such rows."
            )
        ids, lengths = rows["input_ids"], rows["attention_mask"].sum(1) - 2
        if self.attack_steps > 0 and self.placement != "add":
            insert_tokens(ids, lengths, ids.new_zeros(len(ids), self.tokens), self.placement)
        return lengths

    # ---- draws -------------------------------------------------------------------------------------------------

    def _noise(self, module: LightningModule, rows: int, *purpose: int) -> Tensor:
        shape = latent_shape(as_text_to_image(module))
        return row_noise(shape, row_numbers(rows), self.seed, batch_number(module), *purpose).to(module.device)

    def _attack_draw(self, module: LightningModule, step: int) -> torch.Generator:
        return keyed_generator(self.seed, batch_number(module), _ATTACK, step)

    def _sample(
        self,
        module: LightningModule,
        prompts: _Prompts,
        noise: Tensor,
        draws: list[torch.Generator],
        rows: int | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """What ``partial_sample`` would give for each generator, off one way from the noise to an image.

        All prompts have a place in the first of them, and only as many as ``rows`` in the others.
        """
        model = as_text_to_image(module)
        options: dict[str, Any] = {"steps": self.steps, "guidance": self.start_guidance}
        if len(draws) == 1:
            return [
                partial_sample(model, prompts.concept, prompts.empty, noise, draws[0], pairing=self.pairing, **options)
            ]
        choices = [int(torch.randint(self.steps, (), generator=draw)) for draw in draws]
        levels = len(model.scheduler.alphas_cumprod)
        ranges = [ldm_timesteps(choice, self.steps, levels) for choice in choices]
        stops = choices if self.pairing == "exact" else [run for run, _, _ in ranges]
        at: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            walk = trajectory(model, prompts.concept, prompts.empty, noise, **options)
            while len(at) <= max(stops):
                at.append(walk.send(rows if len(at) > stops[0] else None))
        first, *others = stops
        pairs = [at[first], *((at[stop][0][:rows], at[stop][1]) for stop in others)]
        if self.pairing == "exact":
            return pairs
        return [
            (pair[0], torch.randint(low, high, (), generator=draw).to(noise.device))
            for pair, (_, low, high), draw in zip(pairs, ranges, draws, strict=True)
        ]


@contextmanager
def _frozen(module: LightningModule) -> Iterator[None]:
    """Weights without gradients: the attack needs none of them, nor the memory that they would take."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
