"""Hooks that add noise to the hidden states of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.layers import HOOK_NOT_CALLED, decoder_layers
from lightning_unlearn.functional.language.activation_noise import relative_noise
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.attacks.kept_blocks import KeptBlocks
from lightning_unlearn.language.attacks.token_batches import prompt_ids
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.prefixes import by_mask
from lightning_unlearn.language.probes import Probe

__all__ = ["PromptNoise"]


class PromptNoise:
    """Finds the prompts of probes in the inputs of a model, and adds noise to their hidden states.

    A prompt is identified by its tokens, so a row has the same noise in any batch, with any padding, on any process,
    and before generated and given answers alike. Rows with the same prompt share their noise. When answers are
    generated, the blocks below the noise run once for each batch of prompts.

    Args:
        module: The model.
        probes: Its prompts; nothing else may be run.
        seed: Seed of all draws.
    """

    def __init__(self, module: LitCausalLM, probes: Sequence[Probe], seed: int) -> None:
        self.model: Any = module.model
        self.blocks = decoder_layers(self.model)[1]
        self.seed = seed
        self.rows: dict[tuple[int, ...], int] = {}
        for probe, prompts in zip(probes, prompt_ids(module, probes), strict=True):
            for prompt in prompts:
                self.rows.setdefault(prompt, probe.row)
        self.rows.pop((), None)
        self.lengths = sorted({len(prompt) for prompt in self.rows}, reverse=True)
        self.kept = KeptBlocks.of(module, list(self.blocks), next(iter(self.rows))) if self.rows else None
        self._places: list[tuple[int, int, tuple[int, ...]]] = []
        self._norms: dict[tuple[int, float], list[float]] = {}

    @contextmanager
    def added(self, layer: int, sigma: float, draw: int) -> Iterator[None]:
        """Add a draw of noise to the output of a decoder block while the body runs.

        Args:
            layer: Number of the block, from 0.
            sigma: Relative size; 0 changes no bit.
            draw: Number of the draw.
        """
        sums = self._norms.setdefault((layer, sigma), [0.0, 0])
        before = sums[1]
        with self.kept.used(layer) if self.kept is not None else nullcontext():
            handles = (
                self.model.register_forward_pre_hook(self._find, with_kwargs=True),
                self.blocks[layer].register_forward_hook(self._hook(layer, sigma, draw)),
            )
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
                self._places = []
        if sums[1] == before:
            raise RuntimeError(f"No hidden state of a prompt went through decoder block {layer}. {HOOK_NOT_CALLED}")

    def mean_norm(self, layer: int, sigma: float) -> float:
        """Mean length of the hidden states that noise of a size was added to behind a block, before it was."""
        total, positions = self._norms.get((layer, sigma), (0.0, 0))
        return total / max(1, positions)

    @by_mask
    def _find(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        if ids is None or ids.dim() != 2 or (mask is not None and mask.dim() != 2):
            raise RuntimeError(
                "Activation noise finds prompts by input_ids (B, T) and an attention mask (B, T), but the model was "
                "called otherwise. Score with token ids, and without a static cache."
            )
        self._places = []
        if ids.shape[1] == 1:
            return  # the first position of a prompt, or one behind it
        if any(map(_filled, kwargs.values())) or (mask is not None and mask.shape[1] > ids.shape[1]):
            return  # behind the prompt: the cache carries the noise
        for number, row in enumerate(ids.tolist()):
            real = [i for i, one in enumerate(mask[number].tolist()) if one] if mask is not None else range(len(row))
            tokens = tuple(row[i] for i in real)
            self._places.append((number, real[0] if len(real) else 0, self._prompt(tokens)))

    def _prompt(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """The part of a sequence that is a prompt."""
        for length in self.lengths:
            if tokens[:length] in self.rows:
                return tokens[:length]
        # A prompt that is run without its last tokens, which are then run with each answer.
        if any(prompt[: len(tokens)] == tokens for prompt in self.rows):
            return tokens
        raise RuntimeError(
            f"The model was run on {len(tokens)} tokens that begin with the prompt of no probe, so the noise has no "
            "place. Score the probes that the attack was given, in the prompt format of the model."
        )

    def _hook(self, layer: int, sigma: float, draw: int) -> Any:
        sums = self._norms[layer, sigma]

        @by_mask
        def add(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            noisy = hidden.clone()
            for number, start, prompt in self._places:
                # The first position gathers attention, and its hidden state is many times longer than the others.
                part = slice(start + 1, start + len(prompt))
                before = hidden[number, part]
                sums[0] += float(before.detach().float().norm(dim=-1).sum())
                sums[1] += len(before)
                noise = self._draw(prompt, hidden.shape[-1], layer, sigma, draw).to(hidden.device)
                noisy[number, part] = relative_noise(before, noise, sigma)
            if not sigma or not self._places:
                return output
            return noisy if isinstance(output, Tensor) else type(output)((noisy, *output[1:]))

        return add

    def _draw(self, prompt: tuple[int, ...], width: int, layer: int, sigma: float, draw: int) -> Tensor:
        """Noise of each position but the first, drawn on the CPU, so that every device has the same."""
        whole = prompt
        if prompt not in self.rows:
            whole = next(known for known in self.rows if known[: len(prompt)] == prompt)
        key = (self.seed, self.rows[whole], layer, round(sigma * 1_000_000), draw)
        noise = torch.randn(len(whole), width, generator=keyed_generator(*key))
        return noise[1 : len(prompt)]


def _filled(argument: Any) -> bool:
    """Whether an argument of a model is a cache with tokens in it; its name has changed with releases."""
    if not hasattr(argument, "get_seq_length"):
        return False
    try:
        return bool(argument.get_seq_length() > 0)
    except ValueError:  # recurrent layers alone, which keep no tokens
        return False
