"""MACE: mass concept erasure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.adapter_objective import AdapterObjective
from lightning_unlearn.diffusion.engine.adapters import LowRankAdapters
from lightning_unlearn.diffusion.engine.attention import attention_probabilities, check_attention
from lightning_unlearn.diffusion.engine.denoising import noised
from lightning_unlearn.diffusion.engine.model import TextToImage, alphas_bar, as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.text import concept_tokens, encode, tokenize, word_ids
from lightning_unlearn.diffusion.uce import apply_map, each_row
from lightning_unlearn.functional.diffusion.mace import focal_density, fusion_maps, masked_attention_norm, replaced
from lightning_unlearn.functional.diffusion.uce import uce_map

__all__ = ["MACE"]


class MACE(AdapterObjective):
    r"""MACE: removes a concept from the words around it, and attention from its own words, for many concepts at once.

    1. A closed-form edit, as in [`UCE`][lightning_unlearn.UCE], changes the keys and values of the words *around* a
       concept to those that they have around its replacement: in "a photo of a ship at sea", all words but "ship" get
       those of "a photo of a ground at sea". This is needed because a text encoder carries a concept on to all words
       that follow it.
    2. For each concept, rank-one adapters on keys and values train on its images with the loss

       $$\mathcal{L} = \sum_l \Big( \sum_{h,\, q \in M,\, k \in P} A_{lhqk}(z_t, t, c)^2 \Big)^{1/2},$$

       mean over the rows. $A$ are the probabilities with which position $q$ of the image attends to token $k$, $P$ are
       the tokens of the concept, and $M$ is the mask of where it is in the image, or the whole image for rows without
       ``mask``. The noise levels are those at which a concept takes shape, see
       [`focal_density`][lightning_unlearn.functional.diffusion.mace.focal_density]. All concepts train at the same
       time: each row goes through the adapters of the concepts that its caption names.
    3. When training ends, and in each checkpoint, the adapters are fused into the weights in closed form, so that each
       acts on the prompts of its own concept: see
       [`fusion_maps`][lightning_unlearn.functional.diffusion.mace.fusion_maps]. Validation during training sees all of
       them at once.

    The paper trains for 50 steps of one image at a learning rate of 1e-5 for objects and 1e-4 for styles, with eight
    images and thirty prompts per concept. It keeps other concepts by $10^5$ captions with a weight around 1e-6.

    Args:
        concepts: Maps the words that name each concept to those that replace it, such as ``{"ship": "ground"}``.
        templates: Prompts for the closed forms, in addition to the captions of the images; ``{}`` is the concept.
        rank: Rank $r$ of each adapter.
        alpha: Numerator of the adapters' scale, which is ``alpha / rank``.
        end_of_text: Whether $P$ includes the tokens that end a caption, whose states summarise it. Stable Diffusion 1.x
            pads with the same token.
        focal: Whether noise levels are drawn around 300 of 1000; otherwise all are equally likely.
        lamb: $\lambda > 0$ of both closed forms, the weight of staying near the old weights.
        preserve_scale: $s_p \ge 0$, the weight of retain prompts in both; with 0 none are needed.
        seed: Seed of the adapters, the noise and the noise levels.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a number is out of range, a concept or a template is empty, or a caption to forget names none.
        MisconfigurationException: If rows can't be read one by one, with gradient checkpointing, which recomputes
            attention where it is not recorded, or if the module's optimizer does not take the adapters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[MACE({"ship": "ground"})], max_steps=50, logger=False, accelerator="cpu")

    References:
        Lu et al., *MACE: Mass Concept Erasure in Diffusion Models*, arXiv:2403.06135; the norm of the loss and
        ``end_of_text`` are those of the authors' code.
    """

    separable = True

    def __init__(
        self,
        concepts: Mapping[str, str],
        templates: Sequence[str] = ("a photo of {}", "an image of {}", "a painting of {}", "{} in a picture"),
        rank: int = 1,
        alpha: float = 1.0,
        end_of_text: bool = True,
        focal: bool = True,
        lamb: float = 1000.0,
        preserve_scale: float = 0.0,
        seed: int = 0,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(merge=True, seed=seed)
        self.keep_reference = keep_reference
        self.private = (*self.private, "start")
        if not isinstance(concepts, Mapping) or not concepts or not all(map(str.strip, concepts)):
            raise ValueError(
                f"concepts are names and what replaces them, such as {{'ship': 'ground'}}, but got {concepts!r}."
            )
        bare = [template for template in templates if "{}" not in template]
        if bare:
            raise ValueError(f"A template has {{}} where the concept's name goes, but got {bare[0]!r}.")
        self.concepts, self.templates = dict(concepts), list(templates)
        self.rank, self.alpha, self.end_of_text = at_least("rank", rank, 1), above("alpha", alpha, 0), end_of_text
        self.lamb, self.preserve_scale = above("lamb", lamb, 0), at_least("preserve_scale", preserve_scale, 0)
        self.focal = focal
        self._start: dict[str, Tensor] = {}
        self._maps: dict[str, Tensor] = {}
        self._kept = torch.empty(0)
        if not preserve_scale:
            self.needs = replace(self.needs, roles=("forget",))

    def make_adapters(self, model: TextToImage) -> dict[str, LowRankAdapters]:
        """A set for each concept, on keys and values."""
        layers = kv_layers(model.unet)
        return {
            name: LowRankAdapters(model.unet, self.rank, self.alpha, f"mace_{i}", self.seed + i, layers)
            for i, name in enumerate(self.concepts)
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that attention can be recorded, and attach the adapters."""
        if stage == "fit":
            check_attention(as_text_to_image(pl_module).unet, type(self).__name__)
            self._start, self._maps = {}, {}
        super().setup(trainer, pl_module, stage)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Refine the weights in closed form: the words around a concept no longer carry it."""
        super().begin(trainer, module)
        self._start = self.weights()
        self._fit(trainer, module, refine=True)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue from weights that are refined."""
        super().restore(state, trainer, module)
        self._start = state["start"]
        self._fit(trainer, module, refine=False)

    @torch.no_grad()
    def _fit(self, trainer: Trainer, module: LightningModule, refine: bool) -> None:
        """Find the concepts in every caption, and compute the maps that fuse their adapters."""
        loaders, model = self.row_loaders(trainer), as_text_to_image(module)
        with evaluating(module), torch.autocast(module.device.type, enabled=False):
            prompts = self.prompts(module, loaders["forget"])
            keep = self.states(model, self._captions(module, loaders["retain"])) if self.preserve_scale else None
            if refine:
                apply_map(model, self.refinement(model, prompts, keep))
            contexts = [self.states(model, ids) for ids in prompts.values()]
            maps, self._kept = fusion_maps(contexts, keep, preserve_scale=self.preserve_scale, lamb=self.lamb)
            self._maps = dict(zip(prompts, maps, strict=True))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the adapters off, and the refinement back."""
        if self._start and self.sets and not self._base:
            self.put_weights(self._start)
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """The adapters, and the weights before and after the refinement."""
        return {**super().state_dict(), "start": self._start}

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The attention of one batch of images to their concepts, each through its own adapters."""
        model, rows = as_text_to_image(module), batch["forget"]
        named = concept_tokens(model, rows["input_ids"], list(self.concepts))
        positions = named.any(0)
        if self.end_of_text:
            positions |= rows["input_ids"] == model.tokenizer.eos_token_id
        density = focal_density(len(alphas_bar(model))) if self.focal else None
        latents, timesteps, _ = noised(module, rows, self.draws(module), density=density)

        def term() -> dict[str, Tensor]:
            with ExitStack() as stack:
                for adapters, places in zip(self.sets.values(), named, strict=True):
                    stack.enter_context(adapters.scaled(places.any(1).float()))
                recorded = stack.enter_context(attention_probabilities(model.unet))
                output = unet_output(model, latents, timesteps, encode(model, rows["input_ids"]))
            height, width = latents.shape[2:]
            calls = [call for calls in recorded.values() for call in calls]
            loss = masked_attention_norm(calls, positions, rows.get("mask"), (height, width)).mean()
            # The output has no part in the loss, but DDP waits for a gradient of all that trains.
            return {"loss": loss + 0 * output.sum()}

        return self.smoothed(module, term)

    def merged(self, path: str) -> Tensor:
        """The fused weight of a layer."""
        weight = self.layers[path].weight.detach()
        if not self._maps:
            return weight
        fused = weight.double() + (self._start[path].to(weight).double() - weight.double()) @ self._kept
        for name, adapters in self.sets.items():
            fused = fused + adapters.adapters[path].change().detach().double() @ self._maps[name]
        return fused.to(weight)

    def prompts(self, module: LightningModule, forget: Iterable[Batch]) -> dict[str, Tensor]:
        """Token ids of the prompts of each concept, each of shape ``(N, L)``: templates, and captions that name it."""
        model = as_text_to_image(module)
        captions = self._captions(module, forget)
        named = concept_tokens(model, captions, list(self.concepts)).any(2)
        prompts = {}
        for name, has in zip(self.concepts, named, strict=True):
            texts = [template.replace("{}", name) for template in self.templates]
            filled = [tokenize(model.tokenizer, texts)["input_ids"].to(captions)] if texts else []
            prompts[name] = torch.cat([*filled, captions[has]])
            if not len(prompts[name]):
                raise ValueError(f"No caption names {name!r} and there are no templates. Give one, or leave it out.")
        return prompts

    def refinement(self, model: TextToImage, prompts: Mapping[str, Tensor], keep: Tensor | None) -> Tensor:
        """The matrix $M$ by which the words around the concepts come to carry what replaces them, shape ``(D, D)``."""
        concepts, guides = [], []
        for name, replacement in self.concepts.items():
            old, new = (word_ids(model.tokenizer, text) if text else [] for text in (name, replacement))
            pairs = [replaced(ids, old, new) for ids in prompts[name].tolist()]
            others = torch.tensor([ids for ids, _ in pairs], device=prompts[name].device)
            states, guide_states = encode(model, prompts[name]), encode(model, others)
            for row, (_, places) in enumerate(pairs):
                before, after = zip(*places, strict=True)
                concepts.append(states[row, list(before)])
                guides.append(guide_states[row, list(after)])
        return uce_map(torch.cat(concepts), torch.cat(guides), keep, preserve_scale=self.preserve_scale, lamb=self.lamb)

    def states(self, model: TextToImage, input_ids: Tensor) -> Tensor:
        """All text states of prompts, shape ``(N L, D)``."""
        return encode(model, input_ids).flatten(0, 1)

    def _captions(self, module: LightningModule, loader: Iterable[Batch]) -> Tensor:
        return torch.stack([ids for (ids,) in each_row(module, loader, ("input_ids",))])
