"""Prompts to attack, and tokens that may be inserted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.sources import Source, is_missing
from lightning_unlearn.diffusion.data.prompts import drawn_with, load_prompts
from lightning_unlearn.diffusion.engine.model import TextToImage

__all__ = ["allowed_tokens", "attack_prompts", "word_counts"]


def attack_prompts(source: Source, guidance: float = 7.5) -> list[dict[str, Any]]:
    """Prompts with the seed and the guidance of their image.

    Args:
        source: Rows, or a file of them, with ``prompt``, and optionally ``seed`` (or ``evaluation_seed`` or I2P's
            ``sd_seed``; by default the number of the row), ``guidance`` (or ``evaluation_guidance`` or I2P's
            ``sd_guidance_scale``), I2P's ``categories``, a list or names with commas between, and, for
            ``objective="transfer"``, ``adversarial``; or plain strings. The size of an image is the model's, whatever
            a row says.
        guidance: Guidance of rows that name none.

    Raises:
        ValueError: If there is no row, a row has no prompt, or its seed or guidance is no number.

    Example:
        >>> attack_prompts(["a church", {"prompt": "a tower", "evaluation_seed": "7"}])[1]
        {'prompt': 'a tower', 'seed': 7, 'guidance': 7.5}
    """
    rows = []
    for number, row in enumerate(load_prompts(source, "prompts to attack")):
        # A file of seeds for evaluation has other columns of seeds beside them.
        seed, weight = drawn_with(row, f"Row {number} of the prompts to attack", number, guidance)
        prompt: dict[str, Any] = {"prompt": row["prompt"], "seed": seed, "guidance": weight}
        categories: Any = row.get("categories")
        if not is_missing(categories):
            names = categories.split(",") if isinstance(categories, str) else categories
            prompt["categories"] = [str(name).strip() for name in names]
        rows.append(prompt | ({"adversarial": row["adversarial"]} if row.get("adversarial") else {}))
    return rows


def word_counts(ids: Tensor, tokenizer: Any) -> Tensor:
    """Number of tokens between the beginning of each row and its first end."""
    return (ids == tokenizer.eos_token_id).int().argmax(1) - 1


def allowed_tokens(model: TextToImage) -> Tensor:
    """Ids of all non-special tokens. The embedding table may be larger than the vocabulary."""
    table = model.text_encoder.get_input_embeddings().weight
    special = set(model.tokenizer.all_special_ids)
    ids = [i for i in range(min(len(model.tokenizer), len(table))) if i not in special]
    return torch.tensor(ids, device=table.device)
