"""Retain term on hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn.core.layers import HOOK_NOT_CALLED, find_layer, watching
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.scores import Batch, output_head
from lightning_unlearn.functional.language.rmu import rmu_retain

__all__ = ["EmbeddingDifference"]


@dataclass(frozen=True)
class EmbeddingDifference:
    r"""Retain term that keeps the hidden states of retain rows close to those of the original model.

    $$\mathcal{L}_{retain} = \frac{1}{d}\, \mathbb{E}_{b,t} \lVert h_\theta(x_r)_t - h_{ref}(x_r)_t \rVert_2^2$$

    The retain term of RMU, for any objective: ``NPO(retain=EmbeddingDifference("layers.7"))``, in YAML
    ``retain: {layer: layers.7}``. The mean is over all positions with attention, prompts included, and over all
    positions where rows have no ``attention_mask``. The hidden states are read off the one forward pass over forget
    and retain rows; the original model runs once more on the retain rows.

    Args:
        layer: Module whose output is compared: the end of its dotted name, or a regular expression found in one name
            only. By default the input of the output head of a Hugging Face model, its last hidden state.

    Example:
        >>> from lightning_unlearn import NPO
        >>> NPO(retain=EmbeddingDifference("model.layers.7")).retain
        EmbeddingDifference(layer='model.layers.7')

    References:
        Li et al., *The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning*, arXiv:2403.03218.
    """

    layer: str | None = None

    @contextmanager
    def watching(self, module: LightningModule) -> Iterator[list[Tensor]]:
        """Collect the hidden states of every forward pass in the body, each with the rows in dimension 0."""
        layer = output_head(module) if self.layer is None else find_layer(module, self.layer)[1]
        if layer is None:
            raise MisconfigurationException(
                f"EmbeddingDifference() compares the last hidden state, but no output head can be found in "
                f"{type(module).__name__}, which has no get_output_embeddings(). Name a module: "
                "EmbeddingDifference(layer=...)."
            )
        with watching(layer) as calls:
            yield calls.inputs if self.layer is None else calls.outputs


def of_role(hidden: list[Tensor], sizes: dict[str, int], role: str) -> Tensor:
    """The rows of one role, whether all roles shared a forward pass or each had its own."""
    if len(hidden) not in (1, len(sizes)):
        raise MisconfigurationException(
            f"The layer of EmbeddingDifference ran {len(hidden)} times for {len(sizes)} roles. Name a layer that runs "
            f"once in a forward pass.{'' if hidden else ' ' + HOOK_NOT_CALLED}"
        )
    roles = list(sizes)
    parts = hidden[0].split(list(sizes.values())) if len(hidden) == 1 else hidden
    return parts[roles.index(role)]


def embedding_distance(hidden: Tensor, reference: Tensor, rows: Batch) -> tuple[Tensor, Tensor]:
    """Squared distance of each row, summed over its positions that count, and the number of these; both ``(B,)``."""
    mask = rows.get("attention_mask") if isinstance(rows, dict) else None
    size = hidden.shape[-1]
    reference = reference.reshape(len(reference), -1, size)
    # Rows that went with longer ones of another role were padded to those.
    hidden = hidden.reshape(len(hidden), -1, size)[:, : reference.shape[1]]
    mask = torch.ones_like(reference[..., 0]) if mask is None else mask
    if mask.shape != reference.shape[:2]:
        raise MisconfigurationException(
            f"EmbeddingDifference compares hidden states of shape (B, T, d) for an attention_mask of shape "
            f"{tuple(mask.shape)}, but the layer gave {tuple(reference.shape)}. Name a layer that keeps "
            "positions apart, such as a decoder block."
        )
    positions = mask.float().sum(1)
    return rmu_retain(hidden, reference, mask) * positions, positions
