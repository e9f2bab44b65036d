"""Cache of the decoder blocks below a changed one, which run once for each batch of prompts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.prefixes import by_mask, hooks_of, keeps_all, prefix_name

__all__ = ["KeptBlocks"]

_LIMIT = 4096  # tokens, padding among them


class _Batch(NamedTuple):
    """What is kept of a batch of prompts.

    Args:
        layer: Number of the last block that was run.
        output: Its output.
        layers: Keys and values of all blocks up to it.
    """

    layer: int
    output: Any
    layers: list[Any]


class KeptBlocks:
    """Caches the outputs of the blocks up to a changed one for a batch of prompts.

    Only passes that begin a cache are kept; a pass with a later block changed, or with another change, continues from
    there. Each block must depend only on the output of the one before, and the cache must keep all keys and values. The
    weights must not change in between.

    Args:
        model: A Hugging Face model.
        blocks: Its decoder blocks.
        name: The name of its cache, as argument and output.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], name: str) -> None:
        self.model, self.blocks, self.name = model, blocks, name
        self.batches: dict[Any, _Batch] = {}
        self._layer = 0
        self._key: Any = None
        self._given: _Batch | None = None
        self._new: Any = None
        self._own: dict[nn.Module, Any] = {}

    @classmethod
    def of(cls, module: LitCausalLM, blocks: Sequence[nn.Module], prompt: Sequence[int]) -> KeptBlocks | None:
        """Block cache of a model, if the model can continue from it; tried with a prompt.

        Args:
            module: The model.
            blocks: Its decoder blocks.
            prompt: Token ids.
        """
        model, name = module.model, prefix_name(module.model)
        if name is None or hooks_of(model) or len(set(blocks)) < len(blocks):
            return None
        kept = cls(model, blocks, name)
        ids = torch.tensor([list(prompt)], device=module.device)
        with evaluating(module), kept.used((len(blocks) - 1) // 2):
            try:
                first, second = (
                    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True) for _ in range(2)
                )
            except Exception:
                return None  # its blocks take more from one another than their outputs
        used = bool(kept.batches)
        kept.batches.clear()
        return kept if used and _agree(first, second, name) else None

    @contextmanager
    def used(self, layer: int) -> Iterator[None]:
        """Keep what the blocks give up to one whose output the body changes, with hooks that it adds later.

        Change blocks in ascending order. A change of an earlier block means new prompts, for which the kept outputs are
        of no use.

        Args:
            layer: Number of that block.
        """
        if layer < self._layer:
            self.batches.clear()
        self._layer = layer
        handles = (
            self.model.register_forward_pre_hook(by_mask(partial(self._enter, layer)), with_kwargs=True),
            self.blocks[layer].register_forward_hook(by_mask(partial(self._keep, layer))),
            self.model.register_forward_hook(by_mask(partial(self._leave, layer))),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._release()

    def _enter(self, layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._key, self._new = None, None
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        begins = kwargs.get("use_cache") and kwargs.get(self.name) is None
        if args or not begins or ids is None or mask is None or ids.shape != mask.shape:
            return
        self._key = tuple((tuple(part.shape), part.cpu().numpy().tobytes()) for part in (ids, mask))
        known = self.batches.get(self._key)
        if known is not None and known.layer <= layer:
            self._given = known
            for block in self.blocks[: known.layer + 1]:
                self._own[block] = vars(block).get("forward")
                vars(block)["forward"] = partial(_given, known.output)

    def _keep(self, layer: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        plain = isinstance(output, Tensor) or (type(output) is tuple and len(output) == 1)
        if self._key is not None and plain:
            self._new = output

    def _leave(self, layer: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        cache: Any = getattr(output, self.name, None)
        given, new = self._given, self._new
        self._release()
        if given is not None:
            cache.layers[: given.layer + 1] = [copy.copy(part) for part in given.layers]
        if new is None or (given is not None and given.layer == layer) or not self._has_room():
            return
        if keeps_all(cache, cache.get_seq_length()):
            self.batches[self._key] = _Batch(layer, new, [copy.copy(part) for part in cache.layers[: layer + 1]])

    def _has_room(self) -> bool:
        shapes = [ids[0] for ids, _ in {*self.batches, self._key}]
        return sum(rows * width for rows, width in shapes) <= _LIMIT

    def _release(self) -> None:
        """Let all blocks run themselves again."""
        for block, own in self._own.items():
            del vars(block)["forward"]
            if own is not None:
                vars(block)["forward"] = own
        self._own.clear()
        self._given, self._new = None, None


def _given(output: Any, *_: Any, **__: Any) -> Any:
    return output


def _agree(first: Any, second: Any, name: str) -> bool:
    """Whether two passes have the same logits, keys and values."""
    pairs = [(first.logits, second.logits)]
    for one, other in zip(getattr(first, name).layers, getattr(second, name).layers, strict=True):
        pairs += [(one.keys, other.keys), (one.values, other.values)]
    return all(a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3) for a, b in pairs)
