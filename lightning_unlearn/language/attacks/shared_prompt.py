"""Keys and values of a prompt, computed once for many sequences that go on from it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from lightning_unlearn.language.adapters import is_peft_model
from lightning_unlearn.language.attacks.latent import head_on_last
from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["SharedPrompt"]


class SharedPrompt:
    """The beginning of many sequences.

    Args:
        module: The model, in evaluation mode.
        ids: Tokens of the beginning.
    """

    def __init__(self, module: LitCausalLM, ids: Sequence[int]) -> None:
        self._name = _cache_name(module)
        self._cache = self._computed(module, ids)

    @property
    def works(self) -> bool:
        """Whether the model keeps keys and values that sequences can go on from."""
        return self._cache is not None

    def inputs(self, size: int) -> dict[str, Any]:
        """Arguments of a forward pass or of ``generate`` for so many sequences; none where it does not work."""
        if self._cache is None:
            return {}
        cache = copy.deepcopy(self._cache)  # a pass writes into it
        cache.batch_repeat_interleave(size)
        return {self._name: cache, "use_cache": True}

    @torch.no_grad()
    def _computed(self, module: LitCausalLM, ids: Sequence[int]) -> Any:
        from transformers import DynamicCache

        if not ids:
            return None
        tokens = torch.tensor([list(ids)], device=module.device)
        with head_on_last(module, 1):
            output = module.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=True)
        cache = output.get(self._name)
        return cache if type(cache) is DynamicCache else None


def _cache_name(module: LitCausalLM) -> str:
    """What the model calls its cache: releases of transformers differ."""
    model = getattr(module.model, "_orig_mod", module.model)
    model = model.get_base_model() if is_peft_model(model) else model
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
