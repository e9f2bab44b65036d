"""Prefix caching: keys and values computed once for all sequences that share a beginning."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_unlearn.core.scores import head_only_at
from lightning_unlearn.language.adapters import is_peft_model

__all__ = ["Prefix", "PrefixModel", "by_mask", "hooked_model", "hooks_of", "keeps_all", "prefix_model", "prefix_name"]


Hook = TypeVar("Hook", bound=Callable[..., Any])

_NAMES = ("cache", "past_key_values")  # of the newer and the older releases of transformers


class Prefix:
    """Keys and values of token sequences of one length.

    Args:
        cache: The model's cache.
        length: Tokens of each sequence.
    """

    def __init__(self, cache: Any, length: int) -> None:
        self.cache, self.length = cache, length

    def select(self, rows: Sequence[int]) -> Any:
        """A cache with the given sequences, which a forward pass may extend."""
        chosen = copy.copy(self.cache)
        chosen.layers = [copy.copy(layer) for layer in self.cache.layers]
        chosen.batch_select_indices(torch.tensor(rows, device=self._device))
        return chosen

    @property
    def _device(self) -> torch.device:
        keys: Tensor = self.cache.layers[0].keys
        return keys.device


class PrefixModel:
    """A Hugging Face model that continues from cached keys and values.

    Args:
        model: The model.
        name: Its argument for keys and values, and its output.

    Attributes:
        takes_positions: Whether it is told the positions of tokens.
        head: What all sequences begin with, where that is computed once.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        base = model.get_base_model() if is_peft_model(model) else model
        self.takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        self.head: Prefix | None = None

    def begin(self, ids: Tensor) -> Prefix:
        """Keys and values of sequences of one length; after the head, where there is one.

        Args:
            ids: Token ids, shape ``(B, T)``, without those of the head.
        """
        first = torch.zeros(1, dtype=torch.long, device=ids.device)
        with head_only_at(self.model, first, first):  # no logits are wanted
            if self.head is not None:
                output = self.extend(ids, torch.ones_like(ids), self.head, [0] * len(ids))
            else:
                output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        return Prefix(getattr(output, self.name), ids.shape[1] + (self.head.length if self.head is not None else 0))

    def extend(self, ids: Tensor, mask: Tensor, prefix: Prefix, rows: Sequence[int]) -> Any:
        """The model's output after prefixes, at the tokens after them.

        Args:
            ids: Token ids after the prefixes, padded on the right, shape ``(B, T)``.
            mask: 0 where they are padded, shape ``(B, T)``.
            prefix: The prefixes.
            rows: Number of the prefix that each sequence continues.
        """
        mask = torch.cat([mask.new_ones(len(mask), prefix.length), mask], 1)
        cache = {self.name: prefix.select(rows)}
        return self.model(input_ids=ids, attention_mask=mask, use_cache=True, **cache)


def prefix_model(model: Any, longest: int, head: Sequence[int] = ()) -> PrefixModel | None:
    """The model with prefix caching, if its results are then exact; tried with a forward pass over the head.

    Results are exact if every layer keeps the keys and values of all tokens. A recurrent layer keeps a state instead,
    and a layer with a window drops tokens. The result is valid for the current weights.

    Args:
        model: A model of transformers or PEFT; any other module can't.
        longest: Tokens of the longest sequence; a window of this size drops none.
        head: Tokens that all sequences begin with; without them, two others are tried.
    """
    model = getattr(model, "_orig_mod", model)  # of a compiled one
    if hooks_of(model):
        return None  # hooks are to see whole sequences
    name = prefix_name(model)
    if name is None:
        return None
    found = PrefixModel(model, name)
    device = next(model.parameters()).device
    try:
        tried = found.begin(torch.tensor([list(head) or [0, 0]], device=device))
    except (AttributeError, TypeError, ValueError):
        return None  # it returns no cache, or takes none
    if not keeps_all(tried.cache, longest):
        return None
    found.head = tried if head else None
    return found


def by_mask(hook: Hook) -> Hook:
    """Mark a hook that finds whole prompts by ids and mask, on whatever side they are padded.

    A model whose hooks are all marked in this way can generate with our cache, which the prompts begin.
    """
    hook.by_mask = True  # type: ignore[attr-defined]
    return hook


def hooked_model(model: Any, longest: int) -> PrefixModel | None:
    """A model whose hooks all find prompts `by_mask`, if its config promises a cache that keeps all keys and values.

    A trial pass would run the hooks, so the caller has to check the first cache.

    Args:
        model: A model of transformers or PEFT; any other module can't.
        longest: Tokens of the longest sequence.
    """
    from transformers import DynamicCache

    hooks, name = hooks_of(model), prefix_name(model)
    if name is None or not hooks or not all(getattr(hook, "by_mask", False) for hook in hooks):
        return None
    base = model.get_base_model() if is_peft_model(model) else model
    return PrefixModel(model, name) if keeps_all(DynamicCache(config=base.config), longest) else None


def keeps_all(cache: Any, longest: int) -> bool:
    """Whether a cache keeps the keys and values of all tokens of sequences of so many."""
    from transformers import DynamicCache

    return type(cache) is DynamicCache and all(_keeps_all(layer, longest) for layer in cache.layers)


def hooks_of(model: nn.Module) -> list[Any]:
    """All hooks before and after the forward passes of a model and its parts."""
    return [h for part in model.modules() for h in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())]


def prefix_name(model: Any) -> str | None:
    """Name of the cache of keys and values that a model takes and returns, as far as its class says."""
    from transformers import PreTrainedModel

    base = model.get_base_model() if is_peft_model(model) else model
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder:
        return None
    if is_peft_model(model) and any(part.is_prompt_learning for part in model.peft_config.values()):
        return None  # it puts keys and values of its own before the sequence
    arguments = inspect.signature(base.forward).parameters
    return next((name for name in _NAMES if name in arguments), None)


def _keeps_all(layer: Any, longest: int) -> bool:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if type(layer) is DynamicSlidingWindowLayer:
        return bool(longest < layer.sliding_window)
    return type(layer) is DynamicLayer
