"""Tokens and text states of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.diffusion.engine.model import TextToImage
from lightning_unlearn.functional.diffusion.forget_me_not import token_positions

__all__ = ["concept_tokens", "empty_states", "encode", "inject", "tokenize"]


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids as the pipelines of diffusers make them: cut and padded to the tokenizer's ``model_max_length``.

    Args:
        tokenizer: A ``CLIPTokenizer``.
        prompts: ``B`` prompts.

    Returns:
        ``input_ids`` and ``attention_mask``, each of shape ``(B, L)``, int64.
    """
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def encode(model: TextToImage, input_ids: Tensor) -> Tensor:
    """Text states: the last hidden state after the final layer normalization.

    Args:
        model: The model.
        input_ids: Shape ``(B, L)``.

    Returns:
        Shape ``(B, L, D)``.
    """
    return model.text_encoder(input_ids.to(model.text_encoder.device))[0]


def concept_tokens(model: TextToImage, input_ids: Tensor, names: Sequence[str]) -> Tensor:
    """Positions of the names of concepts in captions.

    Args:
        model: The model.
        input_ids: Tokens of the captions, shape ``(B, L)``.
        names: ``N`` names of concepts; names of several words are found whole.

    Returns:
        Boolean, shape ``(N, B, L)``.

    Raises:
        ValueError: If a caption has none of the names.
    """
    spans = [model.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    positions = torch.stack([token_positions(input_ids, [span]) for span in spans])
    bare = (~positions.any(2).any(0)).nonzero().flatten().tolist()
    if bare:
        caption = model.tokenizer.decode(input_ids[bare[0]], skip_special_tokens=True)
        raise ValueError(
            f"Captions are searched for the tokens of {list(names)}, but the caption {caption!r} of a row to forget "
            "has none of them (captions are cut at the tokenizer's model_max_length). Name the concept in every such "
            "caption, or give the words that it is called by there as well."
        )
    return positions


def empty_states(model: TextToImage, rows: int) -> Tensor:
    """Text states of the empty prompt, shape ``(rows, L, D)``."""
    states = encode(model, tokenize(model.tokenizer, [""])["input_ids"])
    return states.expand(rows, -1, -1)


@contextmanager
def inject(text_encoder: Any, embeddings: Tensor) -> Iterator[None]:
    """Let the text encoder read embeddings in place of those of its token ids, which CLIP's ``forward`` does not take.

    Positions and the causal mask stay as they are. The ids only set the length, and the place of the pooled output.

    Args:
        text_encoder: A ``CLIPTextModel``.
        embeddings: Token embeddings, shape ``(B, L, D)``; gradients flow to them.
    """
    handle = text_encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings)
    try:
        yield
    finally:
        handle.remove()
