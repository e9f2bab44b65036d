"""Output of one layer of a language model, from a forward pass that ends there."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_map_only

from lightning_unlearn.core.layers import HOOK_NOT_CALLED, find_layer
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.scores import Batch

__all__ = ["layer_output"]


def layer_output(module: nn.Module, layer: str | int, batch: Batch) -> Tensor:
    """Output of a layer, with its graph unless gradients are off.

    Later layers run only where weights are sharded (FSDP2), and then without gradients.

    Args:
        module: The model.
        layer: Name or number of a decoder block, see `find_layer`.
        batch: Rows with ``input_ids (B, T)``, and masks and numbers of the same shape where the model reads them.

    Returns:
        Activations, shape ``(B, T, d)``.

    Raises:
        MisconfigurationException: If the layer is not called, gives another shape, or depends on no weight that trains.
    """
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids", "token_type_ids") if k in batch}
    # FSDP2 takes a pass that was left early for one that still runs, and then the next one would not wait for the
    # weights to be exchanged or updated before it gathers them on a stream of its own.
    sharded = any(isinstance(child, FSDPModule) for child in module.modules())
    outputs: list[Tensor] = []

    def keep(_: nn.Module, args: Any, output: Any) -> Any:
        outputs.append(output if isinstance(output, Tensor) else output[0])
        if not sharded:
            raise _Reached
        return tree_map_only(Tensor, Tensor.detach, output)  # so that later layers keep no activations

    handle = find_layer(module, layer)[1].register_forward_hook(keep)
    try:
        module(**inputs)
    except _Reached as reached:
        # Activation checkpointing waits in a generator with autograd's hooks open: close it now, not at some
        # later garbage collection.
        traceback.clear_frames(reached.__traceback__)
    finally:
        handle.remove()
    if not outputs or outputs[-1].shape[:-1] != batch["input_ids"].shape:
        got = f"gave shape {tuple(outputs[-1].shape)}" if outputs else "was not called"
        raise MisconfigurationException(
            f"layer={layer!r} {got}, but RMU steers activations of shape (B, T, d) for input_ids of shape "
            f"{tuple(batch['input_ids'].shape)}. Name one decoder block, such as 'model.layers.7'."
            f"{'' if outputs else ' ' + HOOK_NOT_CALLED}"
        )
    if torch.is_grad_enabled() and not outputs[-1].requires_grad:
        raise MisconfigurationException(
            f"The output of layer={layer!r} does not depend on a parameter that trains. Let trainable name parameters "
            "of that layer or of those before it, and use use_reentrant=False for gradient checkpointing."
        )
    return outputs[-1]


class _Reached(Exception):
    """Leaves the forward pass once the layer has run."""
