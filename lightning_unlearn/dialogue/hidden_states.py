"""Mean hidden states of a causal language model over sequences of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
        layers: Numbers of hidden states: 0 is the embedding, -1 the last one; by default all.
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
    with _ending_after(whole, layers) as outputs:
        try:
            read = whole.base_model(input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False)
            states = read.hidden_states if layers is None else [read.hidden_states[layer] for layer in layers]
        except _ReachedLayer:
            states = [outputs[layer] for layer in layers or ()]
    if any(state.shape[:2] != mask.shape or state.dim() != 3 for state in states):
        raise ValueError(
            f"The hidden states of {type(whole).__name__} have the shape {tuple(states[0].shape)}, but one vector for "
            f"each of {tuple(mask.shape)} tokens is needed. Use another model, or another extractor or selector."
        )
    kept = mask[:, :, None]
    return torch.stack([(state.float() * kept).sum(1) / kept.sum(1) for state in states], 1).cpu()


class _ReachedLayer(Exception):
    """Ends a forward pass whose remaining layers nobody reads."""


@contextmanager
def _ending_after(model: nn.Module, numbers: Sequence[int] | None) -> Iterator[dict[int, Tensor]]:
    """Collect the hidden states of some numbers, and end the forward pass after the last of them.

    All layers run if the embedding or the last state is among them, which comes after the final norm, or if the model
    is compiled or sharded; then nothing is collected.
    """
    outputs: dict[int, Tensor] = {}
    layers = decoder_layers(model)[1]
    special = any(isinstance(part, DTensor) for part in model.parameters()) or any(
        hasattr(child, "_orig_mod") or child._compiled_call_impl is not None for child in model.modules()
    )
    if not numbers or special or not all(0 < number < len(layers) for number in numbers):
        yield outputs
        return

    def collecting(number: int) -> Callable[..., None]:
        def collect(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[number] = output if isinstance(output, Tensor) else output[0]
            if number == max(numbers):
                raise _ReachedLayer

        return collect

    handles = [layers[number - 1].register_forward_hook(collecting(number)) for number in set(numbers)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
