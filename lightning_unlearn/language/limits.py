"""Limits of a language model on its inputs: vocabulary size and learned positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.language.data.language import LanguageDataModule

__all__ = ["check_ids", "check_rows", "learned_positions", "vocabulary_size"]

_PADDING = 0.9  # tables are padded by a few percent at most


def vocabulary_size(model: Any) -> int:
    """Rows of the embedding table."""
    return int(next(model.get_input_embeddings().parameters()).shape[0])


def learned_positions(model: Any) -> int | None:
    """Longest row of a model that has a table of positions; ``None`` where they are computed, as rotary ones are."""
    longest = _longest(model)
    if longest is None:
        return None
    for name, child in model.named_modules():
        # OPT and BART begin to count at 2, RoBERTa behind the id of its padding.
        if isinstance(child, nn.Embedding) and ("pos" in name.rpartition(".")[2] or name.endswith("wpe")):
            rows, padding = child.weight.shape[0], child.padding_idx
            return int(min(longest, rows - (padding + 1 if padding is not None else max(0, rows - longest))))
    tables = [buffer.shape[0] for name, buffer in model.named_buffers() if name.endswith("embed_positions")]  # GPT-J
    return min(tables, default=None)


def check_rows(model: Any, tokenizer: Any, data: LanguageDataModule) -> None:
    """Refuse rows with tokens or positions beyond the model's limits, before training.

    Args:
        model: The model.
        tokenizer: Its own tokenizer.
        data: The data module, set up.

    Raises:
        ValueError: If a row has a token or a length beyond the model's, or tokens of another tokenizer.
    """
    size, positions = vocabulary_size(model), learned_positions(model)
    other = data.prompt.tokenizer
    if other is not tokenizer and hasattr(tokenizer, "get_vocab") and hasattr(other, "get_vocab"):
        _check_same_tokens(tokenizer, other)
    for name, rows in data.sets.items():
        ids = [[*row.prompt, *row.answer] for row in getattr(rows, "rows", [])]
        largest = max((max(row) for row in ids if row), default=0)
        if largest >= size:
            raise ValueError(
                f"The {name} set has the token {largest} ({other.convert_ids_to_tokens(largest)!r}), but the model has "
                f"{size} embeddings for the {len(other)} tokens of its tokenizer. Give the tokenizer that belongs to "
                "the model, or enlarge the model: model.resize_token_embeddings(len(tokenizer)), then save_pretrained."
            )
        longest = max(map(len, ids), default=0)
        if positions is not None and longest > positions:
            raise ValueError(
                f"The {name} set has a row of {longest} tokens, but the model has learned positions for {positions}. "
                f"Set max_length={positions} or less (it is {data.max_length})."
            )
        if longest > (trained := _longest(model) or longest):
            rank_zero_warn(
                f"The {name} set has a row of {longest} tokens, but the model was made for {trained} (its "
                f"max_position_embeddings). Beyond them its likelihoods mean little: set max_length={trained}."
            )
    if hasattr(other, "__len__") and len(other) < _PADDING * size:
        rank_zero_warn(
            f"The tokenizer has {len(other)} tokens and the model {size} embeddings. Is it the tokenizer of this model?"
        )


def check_ids(model: Any, input_ids: Tensor, positions: int | None) -> None:
    """Refuse a batch with tokens or positions beyond the model's limits, where the check is cheap.

    Args:
        model: The model.
        input_ids: Shape ``(B, T)``.
        positions: What `learned_positions` gives.

    Raises:
        ValueError: If a row has a token or a length beyond the model's.
    """
    if torch.compiler.is_compiling():
        return
    if positions is not None and input_ids.shape[1] > positions:
        raise ValueError(
            f"The rows have {input_ids.shape[1]} tokens, but the model has learned positions for {positions}. Shorten "
            "them: max_length of the data module."
        )
    if input_ids.device.type == "cpu" and (largest := int(input_ids.max())) >= (size := vocabulary_size(model)):
        raise ValueError(
            f"The rows have the token {largest}, but the model has {size} embeddings. Tokenize them with the tokenizer "
            "that belongs to the model."
        )


def _longest(model: Any) -> int | None:
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def _check_same_tokens(own: Any, other: Any) -> None:
    """Refuse a tokenizer that numbers tokens differently from the model's own."""
    mine, theirs = own.get_vocab(), other.get_vocab()
    shared = mine.keys() & theirs.keys()
    moved = sorted(token for token in shared if mine[token] != theirs[token])
    if moved:
        token = moved[0]
        raise ValueError(
            f"The tokenizer of the data module is not that of the model: it numbers {len(moved)} of {len(shared)} "
            f"shared tokens differently, such as {token!r}, {theirs[token]} in place of {mine[token]}. Leave it out, "
            "or give LitCausalLM(tokenizer=...) the same one."
        )
