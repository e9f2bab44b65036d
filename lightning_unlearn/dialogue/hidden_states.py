"""Mean hidden states of a causal language model over sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.layers import decoder_layers
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.language.adapters import is_peft_model
from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["mean_states"]


def mean_states(
    module: LitCausalLM, sequences: Sequence[Sequence[int]], layers: Sequence[int] | None = None, max_tokens: int = 8192
) -> Tensor:
    """Means of hidden states over the tokens of each sequence, in evaluation mode and without gradients.

    The head is left out, whose logits of the whole vocabulary would be most of the memory, and so are the decoder
    layers above the last one that is read.

    Args:
        module: The model.
        sequences: Token ids.
        layers: Numbers of hidden states: 0 is the input of the first decoder layer, n the output of the n-th, -1 the
            output of the body, after the final norm; by default all.
        max_tokens: Largest batch in tokens, with padding.

    Returns:
        Shape ``(N, len(layers), D)``, fp32, on the CPU.

    Raises:
        ValueError: If the model has hidden states of another form, as models with several streams have.
    """
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    found: dict[int, Tensor] = {}
    with evaluating(module):
        while order:
            count = max(1, max_tokens // len(sequences[order[-1]]))
            rows, order = order[-count:], order[:-count]
            found |= zip(rows, _means(module, [sequences[row] for row in rows], layers), strict=True)
    return torch.stack([found[row] for row in range(len(sequences))])


def _means(module: LitCausalLM, ids: list[Sequence[int]], layers: Sequence[int] | None) -> Tensor:
    width = max(map(len, ids))
    device = next(module.parameters()).device
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
    whole = module.model.get_base_model() if is_peft_model(module.model) else module.model
    states = _states(whole, {"input_ids": padded, "attention_mask": mask, "use_cache": False}, layers)
    if any(state.shape[:2] != mask.shape or state.dim() != 3 for state in states):
        raise ValueError(
            f"The hidden states of {type(whole).__name__} have the shape {tuple(states[0].shape)}, but one vector for "
            f"each of {tuple(mask.shape)} tokens is needed. Use another model, or another extractor or selector."
        )
    kept = mask[:, :, None]
    return torch.stack([(state.float() * kept).sum(1) / kept.sum(1) for state in states], 1).cpu()


def _states(model: nn.Module, batch: dict[str, Any], layers: Sequence[int] | None) -> list[Tensor]:
    """The input of the first decoder layer, the output of each but the last one, and the output of the body.

    They are collected by hooks, because models differ in what they call hidden states; those that are compiled or
    sharded are asked for theirs.
    """
    body: Any = model.base_model
    blocks = decoder_layers(model)[1]
    special = any(isinstance(part, DTensor) for part in model.parameters()) or any(
        hasattr(child, "_orig_mod") or child._compiled_call_impl is not None for child in model.modules()
    )
    if special or not blocks:
        states = body(**batch, output_hidden_states=True).hidden_states
        return list(states) if layers is None else [states[layer] for layer in layers]
    every = range(len(blocks) + 1)
    numbers = [every[layer] for layer in layers] if layers is not None else list(every)
    found: dict[int, Tensor] = {}
    last = max(numbers)

    def reached(number: int, state: Any) -> None:
        if number in numbers:
            found[number] = state if isinstance(state, Tensor) else state[0]
        if number == last:
            raise _ReachedLayer

    def begin(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        reached(0, args[0] if args else options["hidden_states"])

    handles = [blocks[0].register_forward_pre_hook(begin, with_kwargs=True)]
    for number, block in enumerate(blocks[:-1], 1):
        handles.append(block.register_forward_hook(lambda _, __, output, number=number: reached(number, output)))
    try:
        found[every[-1]] = body(**batch)[0]
    except _ReachedLayer:
        pass  # nobody reads what follows
    finally:
        for handle in handles:
            handle.remove()
    return [found[number] for number in numbers]


class _ReachedLayer(Exception):
    """Ends a forward pass whose remaining layers nobody reads."""
