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

__all__ = [
    "concept_tokens",
    "cut_off",
    "empty_states",
    "encode",
    "encode_inserted",
    "inject",
    "tokenize",
    "word_ids",
]


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` ``(B, L)`` as diffusers has them: cut and padded to ``model_max_length``.

    A word of textual inversion that has several vectors becomes as many tokens.
    """
    length = tokenizer.model_max_length
    tokens = tokenizer(
        _spelled_out(tokenizer, prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def word_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of words, without beginning and end, and not cut."""
    return tokenizer(_spelled_out(tokenizer, [text])[0], add_special_tokens=False)["input_ids"]


def cut_off(tokenizer: Any, prompts: Sequence[str], tokens: dict[str, Tensor]) -> dict[int, str]:
    """The part of each prompt that exceeds the tokenizer's limit, by the number of the prompt.

    Args:
        tokenizer: A ``CLIPTokenizer``.
        prompts: The prompts.
        tokens: What `tokenize` made of them.
    """
    room, ends = tokens["input_ids"].shape[1] - 2, {}
    for number in tokens["attention_mask"].all(1).nonzero().flatten().tolist():
        ids = word_ids(tokenizer, prompts[number])
        if len(ids) > room:
            ends[number] = tokenizer.decode(ids[room:]).strip()
    return ends


def _spelled_out(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts with the names of all vectors of the words that textual inversion added, as pipelines read them."""
    if not any(name.endswith("_1") for name in getattr(tokenizer, "added_tokens_encoder", ())):
        return list(prompts)
    from diffusers.loaders import TextualInversionLoaderMixin

    return TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), tokenizer)


def encode(model: TextToImage, input_ids: Tensor) -> Tensor:
    """Text states ``(B, L, D)`` of tokens ``(B, L)``: the last hidden state after the final layer normalization."""
    return model.text_encoder(input_ids.to(model.text_encoder.device))[0]


def concept_tokens(model: TextToImage, input_ids: Tensor, names: Sequence[str]) -> Tensor:
    """Positions of ``N`` names in captions ``(B, L)``, boolean ``(N, B, L)``; names of several words are found whole.

    Raises:
        ValueError: If a caption has none of the names.
    """
    spans = [word_ids(model.tokenizer, name) for name in names]
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
