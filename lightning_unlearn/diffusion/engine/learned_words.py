"""Prompt words with given embeddings, which leave the tokenizer and the text encoder unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.diffusion.engine.model import TextToImage

__all__ = ["learned_words"]


@contextmanager
def learned_words(model: TextToImage, vectors: Tensor, word: str = "<learned>") -> Iterator[str]:
    """Let a model and its pipeline read a word that is not in the vocabulary.

    Inside the context, the tokenizers of the model and of its ``pipeline`` are copies that know the word, and the text
    encoder looks its tokens up in the vectors; gradients flow to the vectors.

    Args:
        model: The model.
        vectors: Embeddings of its tokens, shape ``(k, D)``.
        word: The word.

    Returns:
        The text to put into prompts, ``k`` tokens long.

    Raises:
        ValueError: If the vocabulary has the word already.
    """
    # Not named as diffusers names the vectors of a word, of which it would write out the first.
    names = [word, *(f"{word.removesuffix('>')}-{number}>" for number in range(1, len(vectors)))]
    tokenizer = deepcopy(model.tokenizer)
    first = len(tokenizer)
    if tokenizer.add_tokens(names) != len(names):
        raise ValueError(f"The tokenizer has {word!r} already. Choose another word.")
    table = model.text_encoder.get_input_embeddings()
    asked: list[Tensor] = []

    def before(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        asked.append(args[0])
        return (args[0].clamp(max=table.num_embeddings - 1), *args[1:])

    def after(_: Any, __: tuple[Tensor, ...], words: Tensor) -> Tensor:
        places = asked.pop() - first
        own = vectors.to(words)[places.clamp(0, len(vectors) - 1)]
        return torch.where((places >= 0)[..., None], own, words)

    owners = [owner for owner in (model, getattr(model, "pipeline", None)) if hasattr(owner, "tokenizer")]
    kept = [owner.tokenizer for owner in owners]  # type: ignore[union-attr]
    handles = [table.register_forward_pre_hook(before), table.register_forward_hook(after)]
    try:
        for owner in owners:
            owner.tokenizer = tokenizer  # type: ignore[union-attr]
        yield " ".join(names)
    finally:
        for handle in handles:
            handle.remove()
        for owner, own in zip(owners, kept, strict=True):
            owner.tokenizer = own  # type: ignore[union-attr]
