"""Features and linear head of a classifier."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from lightning_unlearn.core.layers import HOOK_NOT_CALLED, find_layer, stripped, watching
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.modes import undisturbed
from lightning_unlearn.core.scores import Batch, PredictionScore

__all__ = ["find_head", "head_of", "last_rows"]


def find_head(method: str, module: nn.Module, name: str | None) -> tuple[str, nn.Linear]:
    """The linear layer that gives the logits, and its name.

    Args:
        method: Name of the method, for errors.
        module: The user's module.
        name: The end of the layer's dotted name, or a regular expression that matches exactly one name; ``None`` for
            the last ``nn.Linear`` in the order of definition, which the caller has to check with `head_of`.

    Raises:
        MisconfigurationException: If there is no such layer.
    """
    if name is not None:
        full_name, head = find_layer(module, name)
        if isinstance(head, nn.Linear):
            return full_name, head
        raise MisconfigurationException(
            f"{method} takes a linear layer for the head, but {full_name!r} is a {type(head).__name__}. Name the "
            "nn.Linear that gives the logits."
        )
    linear = [(n, child) for n, child in module.named_modules() if isinstance(child, nn.Linear)]
    if not linear:
        raise MisconfigurationException(
            f"{method} looks for the head among the nn.Linear layers of {type(module).__name__}, which has none. "
            "Give the model a linear head."
        )
    return linear[-1]


def head_of(module: LightningModule, score: PredictionScore, batch: Batch) -> tuple[str, nn.Linear] | None:
    """The linear layer whose output is the logits of a batch, and its name, whatever the order of the layers.

    Args:
        module: The user's module; it is run once, in evaluation mode.
        score: Reads logits from it.
        batch: Rows on its device.

    Returns:
        ``None`` if no layer's output is the logits.
    """
    linear = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    with ExitStack() as stack:
        calls = [stack.enter_context(watching(child)) for _, child in linear]
        stack.enter_context(undisturbed(module))
        logits = score.predictions(module, batch).logits
    readings = [logits] + [logits[:, 1]] * (logits.shape[1] == 2)  # one logit z is read as (0, z)
    for (name, child), call in reversed(list(zip(linear, calls, strict=True))):
        for output in call.outputs:
            if any(
                output.numel() == z.numel() and torch.equal(output.flatten().to(z.dtype), z.flatten()) for z in readings
            ):
                return stripped(name), child
    return None


def last_rows(layer: str, tensors: list[Tensor], rows: int) -> Tensor:
    """Features of the last rows that passed through a layer, one vector per row.

    Args:
        layer: Name of the layer, for errors.
        tensors: Inputs or outputs of its calls.
        rows: Number of rows.

    Returns:
        Shape ``(rows, d)``.

    Raises:
        MisconfigurationException: If the layer was not called, or gave no vector for each row.
    """
    shapes = [tuple(t.shape) for t in tensors]
    if not tensors or sum(len(t) for t in tensors) < rows or any(t.dim() < 2 for t in tensors):
        raise MisconfigurationException(
            f"Layer {layer!r} has to be called once in a forward pass, with one vector for each of {rows} rows, but "
            f"{f'has shapes {shapes}' if tensors else 'was not called'}. Name a layer that is. "
            f"{'' if tensors else HOOK_NOT_CALLED}".rstrip()
        )
    return torch.cat(tensors)[-rows:].flatten(1)
