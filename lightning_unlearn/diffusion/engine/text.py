"""Tokens and text states of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.diffusion.engine.model import TextToImage
from lightning_unlearn.functional.diffusion.forget_me_not import token_positions
from lightning_unlearn.functional.diffusion.soft_tokens import Placement, insert_tokens

__all__ = ["concept_tokens", "empty_states", "encode", "encode_inserted", "inject", "tokenize"]


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` ``(B, L)`` as diffusers has them: cut and padded to ``model_max_length``."""
    length = tokenizer.model_max_length
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def encode(model: TextToImage, input_ids: Tensor) -> Tensor:
    """Text states ``(B, L, D)`` of tokens ``(B, L)``: the last hidden state after the final layer normalization."""
    return model.text_encoder(input_ids.to(model.text_encoder.device))[0]


def concept_tokens(model: TextToImage, input_ids: Tensor, names: Sequence[str]) -> Tensor:
    """Positions of ``N`` names in captions ``(B, L)``, boolean ``(N, B, L)``; names of several words are found whole.

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
    """Let the text encoder read token embeddings ``(B, L, D)``, which CLIP's ``forward`` does not take.

    Gradients flow to them. The ids that it is called with only set the length, and the place of the pooled output.
    """
    handle = text_encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings)
    try:
        yield
    finally:
        handle.remove()


def encode_inserted(
    model: TextToImage, input_ids: Tensor, lengths: Tensor, tokens: Tensor, placement: Placement
) -> Tensor:
    """Text states of prompts with further token embeddings ``(B, k, D)``; arguments as for `insert_tokens`."""
    words = model.text_encoder.get_input_embeddings()(input_ids.to(model.text_encoder.device))
    with inject(model.text_encoder, insert_tokens(words, lengths, tokens.to(words), placement)):
        return encode(model, input_ids)
