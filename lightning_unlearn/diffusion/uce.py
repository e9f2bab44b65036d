"""UCE: unified concept editing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.edit import Edit
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.progress import progress
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.diffusion.engine.denoising import denoising_nll
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.text import encode
from lightning_unlearn.functional.diffusion.uce import uce_map

__all__ = ["UCE", "States", "apply_map", "each_row"]

States = Literal["last", "rest"]


class UCE(Edit):
    r"""UCE: give a concept the keys and values of its anchor, in closed form, and keep those of other prompts.

    $$W \leftarrow \arg\min_W\; s_e \sum_i \|W c_i - W_0 g_i\|^2 + s_p \sum_j \|W c_j - W_0 c_j\|^2
    + \lambda \|W - W_0\|_F^2$$

    for every key and value layer of the cross-attention, whatever the module trains. $c_i$ are text states of the
    forget prompts, $g_i$ those of their anchors, and $c_j$ those of the retain prompts. Each prompt counts once,
    however often the data repeat it. This is an edit: the run makes no optimizer step and no pass of the UNet. A second
    edit moves the weights further.

    Args:
        erase_scale: $s_e > 0$.
        preserve_scale: $s_p \ge 0$; with 0 no retain prompts are needed.
        lamb: $\lambda > 0$.
        states: Which text states of a prompt are used. ``"last"``: the state of its last word, and for the empty prompt
            the first state (the newer code). ``"rest"``: the states from the last word of concept and anchor to the
            end, paired one by one, and all states of prompts to keep (the code of the paper). A text encoder carries a
            concept on to the words after it, so ``"last"`` hardly erases a concept in prompts that do not end with it.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UCE(preserve_scale=0.0)], logger=False, accelerator="cpu")

    References:
        Gandikota et al., *Unified Concept Editing in Diffusion Models*, arXiv:2308.14761.
    """

    def __init__(
        self,
        erase_scale: float = 1.0,
        preserve_scale: float = 1.0,
        lamb: float = 0.5,
        states: States = "last",
    ) -> None:
        super().__init__(denoising_nll)
        self.erase_scale, self.lamb = above("erase_scale", erase_scale, 0), above("lamb", lamb, 0)
        self.preserve_scale = at_least("preserve_scale", preserve_scale, 0)
        self.states = one_of("states", states, States)
        self.needs = Needs(roles=("forget", "retain") if preserve_scale else ("forget",))

    def edit(self, module: LightningModule, forget: Iterable[Batch], retain: Iterable[Batch] | None = None) -> None:
        """Edit the key and value weights.

        Args:
            module: A module with the parts of [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage].
            forget: Loads the prompts of the concepts with their anchors.
            retain: Loads the prompts to keep.

        Raises:
            ValueError: If there are no retain prompts, but they have a weight.
        """
        if retain is None and self.preserve_scale:
            raise ValueError("UCE preserves the retain prompts, but got none. Pass retain, or preserve_scale=0.")
        model = as_text_to_image(module)
        with evaluating(module), torch.autocast(module.device.type, enabled=False):
            concepts, guides = self.edits(module, forget)
            keep = self.kept(module, retain) if retain is not None and self.preserve_scale else None
            self.apply(model, concepts, guides, keep)

    def edits(self, module: LightningModule, forget: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Text states of the concepts and of their anchors, each of shape ``(N, D)``."""
        pairs = [
            pair
            for ids, mask, anchor_ids, anchor_mask in progress(
                each_row(module, forget, ("input_ids", "attention_mask", "anchor_input_ids", "anchor_attention_mask")),
                f"{type(self).__name__}: forget prompts",
            )
            for pair in self._aligned(module, ids, mask, anchor_ids, anchor_mask)
        ]
        concepts, guides = zip(*pairs, strict=True)
        return torch.cat(concepts), torch.cat(guides)

    def kept(self, module: LightningModule, retain: Iterable[Batch]) -> Tensor:
        """Text states of the prompts to keep, shape ``(M, D)``."""
        model = as_text_to_image(module)
        kept = []
        rows = each_row(module, retain, ("input_ids", "attention_mask"))
        for ids, mask in progress(rows, f"{type(self).__name__}: retain prompts"):
            states = encode(model, ids[None])[0]
            kept.append(states if self.states == "rest" else states[last_word(mask)][None])
        return torch.cat(kept)

    def apply(self, model: TextToImage, concepts: Tensor, guides: Tensor, keep: Tensor | None) -> None:
        """Edit every key and value layer."""
        scales = {"erase_scale": self.erase_scale, "preserve_scale": self.preserve_scale}
        apply_map(model, uce_map(concepts, guides, keep, lamb=self.lamb, **scales))

    def _aligned(
        self, module: LightningModule, ids: Tensor, mask: Tensor, anchor_ids: Tensor, anchor_mask: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        concept, guide = encode(as_text_to_image(module), torch.stack([ids, anchor_ids]))
        first, other = last_word(mask), last_word(anchor_mask)
        count = 1 if self.states == "last" else len(ids) - max(first, other)
        return [(concept[first : first + count], guide[other : other + count])]


def apply_map(model: TextToImage, change: Tensor) -> None:
    r"""Edit every key and value layer: $W \leftarrow W + W M$, in double precision."""
    for layer in progress(kv_layers(model.unet).values(), "Keys and values"):
        layer.weight.copy_(layer.weight.double() + layer.weight.double() @ change)


def last_word(mask: Tensor) -> int:
    """Place of the last token before the end of a prompt; that of the empty prompt is its beginning."""
    return int(mask.sum()) - 2


def each_row(module: LightningModule, loader: Iterable[Batch], names: tuple[str, ...]) -> list[tuple[Tensor, ...]]:
    """Each row once, in the order of the loader."""
    rows: dict[tuple[int, ...], tuple[Tensor, ...]] = {}
    for batch in loader:
        moved = transferred(module, batch)
        for row in zip(*(moved[name] for name in names), strict=True):
            rows.setdefault(tuple(torch.cat(row).tolist()), row)
    return list(rows.values())
