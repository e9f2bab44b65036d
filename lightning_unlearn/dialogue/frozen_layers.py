"""Cache of the outputs of frozen layers, for fine-tuning that trains only the last ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from lightning_unlearn.core.layers import decoder_layers
from lightning_unlearn.language.prefixes import hooks_of

__all__ = ["FrozenLayers"]


class FrozenLayers:
    """Runs the frozen layers below the trained ones once for each sequence, and reuses their output in later epochs.

    A batch whose sequences are all cached skips these layers. The output depends on the batch only by rounding. The
    cache is for the weights that the model has now, and for one precision.

    There is nothing to cache if a parameter outside the decoder layers trains, such as an embedding, if the first
    decoder layer trains, or if the model is sharded or compiled, has hooks or draws dropout.

    Args:
        model: A causal language model whose decoder layers run one after another.
        budget: Memory for the outputs in bytes. Sequences beyond it are computed each time.

    Attributes:
        layers: The frozen layers that are skipped.
        reused: Sequences that have been read from the cache.
    """

    def __init__(self, model: nn.Module, budget: float) -> None:
        self.layers = [] if budget <= 0 else _frozen_layers(model)
        self.left, self.reused = budget, 0
        self._kept: dict[bytes, Tensor] = {}
        self._in_tuple = False

    @contextmanager
    def caching(self, ids: Tensor, mask: Tensor) -> Iterator[None]:
        """Reuse outputs, or cache those of a forward pass over a batch.

        Args:
            ids: Token ids, padded on the right, shape ``(B, T)``.
            mask: 1 at tokens, shape ``(B, T)``.
        """
        if not self.layers:
            yield
            return
        lengths = mask.sum(1).tolist()
        keys = [row[:length].cpu().numpy().tobytes() for row, length in zip(ids, lengths, strict=True)]
        if all(key in self._kept for key in keys):
            self.reused += len(keys)
            output = pad_sequence([self._kept[key] for key in keys], batch_first=True)
            with _returning(self.layers, (output,) if self._in_tuple else output):
                yield
            return
        outputs: list[Any] = []
        hook = self.layers[-1].register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            yield
        finally:
            hook.remove()
        for output in outputs:
            self._keep(keys, lengths, output)

    def _keep(self, keys: Sequence[bytes], lengths: Sequence[int], output: Any) -> None:
        self._in_tuple = isinstance(output, tuple)
        values = output[0] if self._in_tuple and len(output) == 1 else output
        if not isinstance(values, Tensor) or values.dim() != 3 or len(values) != len(keys):
            self.layers = []  # the layers hand on more than hidden states
            return
        for key, length, value in zip(keys, lengths, values, strict=True):
            size = length * value.shape[1] * value.element_size()
            if key not in self._kept and size <= self.left:
                self._kept[key] = value[:length].detach().clone()
                self.left -= size


def _frozen_layers(model: nn.Module) -> list[nn.Module]:
    layers = decoder_layers(model)[1]
    inside = {id(parameter) for parameter in layers.parameters()}
    trains_outside = any(p.requires_grad and id(p) not in inside for p in model.parameters())
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if trains_outside or sharded or hooks_of(model) or _compiled(model) or _draws(model) or _shares_keys(model):
        return []
    frozen = []
    for layer in layers:
        if any(parameter.requires_grad for parameter in layer.parameters()):
            break
        frozen.append(layer)
    return frozen


def _compiled(model: nn.Module) -> bool:
    """Whether a part of the model runs as a graph, which does not look its layers up."""
    return any(hasattr(child, "_orig_mod") or child._compiled_call_impl is not None for child in model.modules())


def _draws(model: nn.Module) -> bool:
    """Whether the model has dropout or noise of its own; that of adapters is in layers that train."""
    return any(
        isinstance(value, float) and value > 0 and (re.search("drop|jitter", name) or name == "p")
        for path, child in model.named_modules()
        if "lora_dropout" not in path
        for name, value in vars(child).items()
    )


def _shares_keys(model: nn.Module) -> bool:
    """Whether later layers read keys and values of earlier ones."""
    configs = [getattr(child, "config", None) for child in model.modules()]
    return any(getattr(config, "num_kv_shared_layers", 0) for config in configs)


@contextmanager
def _returning(layers: Sequence[nn.Module], output: Tensor | tuple[Tensor]) -> Iterator[None]:
    """Let layers return an output without computing anything."""
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = lambda *_, **__: output
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
