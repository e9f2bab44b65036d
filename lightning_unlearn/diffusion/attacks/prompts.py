"""Prompts to attack, and tokens that may be inserted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.sources import Source
from lightning_unlearn.diffusion.data.prompts import load_prompts
from lightning_unlearn.diffusion.engine.model import TextToImage

__all__ = ["allowed_tokens", "attack_prompts", "word_counts"]


def attack_prompts(source: Source, guidance: float = 7.5) -> list[dict[str, Any]]:
    """Prompts with the seed and the guidance of their image.

    Args:
        source: Rows, or a file of them, with ``prompt``, and optionally ``seed`` (or ``evaluation_seed``; by default
            the number of the row), ``guidance`` (or ``evaluation_guidance``) and, for ``objective="transfer"``,
            ``adversarial``; or plain strings.
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
        seed = next((row[k] for k in ("evaluation_seed", "seed") if row.get(k) not in (None, "")), number)
        weight = next((row[k] for k in ("evaluation_guidance", "guidance") if row.get(k) not in (None, "")), guidance)
        try:
            prompt: dict[str, Any] = {"prompt": row["prompt"], "seed": int(seed), "guidance": float(weight)}
        except (TypeError, ValueError):
            raise ValueError(
                f"Row {number} of the prompts to attack has seed {seed!r} and guidance {weight!r}, but both must be "
                "numbers."
            ) from None
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
