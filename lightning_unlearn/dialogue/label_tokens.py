"""Tokens of labels, as they go on from a cue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

__all__ = ["LabelTokens", "label_tokens"]

Encode = Callable[[list[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class LabelTokens:
    """Tokens that tell labels apart after a cue.

    Args:
        back: Number of tokens at the end of a prompt that change when a label follows.
        head: Tokens that all labels begin with, such as a space; they are counted as part of the prompt.
        tails: The tokens of each label after that.
    """

    back: int
    head: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]

    @property
    def first_tokens(self) -> bool:
        """Whether the labels differ in their first tokens, so that these identify the labels."""
        return len({tail[0] for tail in self.tails}) == len(self.tails)

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """A prompt up to where labels differ."""
        return [*ids[: len(ids) - self.back], *self.head]


def label_tokens(encode: Encode, cue: str, labels: Sequence[str]) -> LabelTokens:
    """What of a prompt with a label differs from the prompt alone, as tokens.

    The space before a label belongs to its first token in some tokenizers, and is a token of its own in others; a few
    merge it with the end of the cue, and the cue with what the chat template writes before it. So labels are tokenized
    within a whole prompt.

    Args:
        encode: ``texts -> token ids`` of a prompt with each text as the beginning of the answer.
        cue: The beginning of the answer up to the label, without white space after it.
        labels: The labels.

    Raises:
        ValueError: If the tokenizer gives two labels the same tokens.
    """
    alone, *whole = encode([cue, *(f"{cue} {label}" for label in labels)])
    same = min(_shared([alone, ids]) for ids in whole)
    tails = [tuple(ids[same:]) for ids in whole]
    if len(set(tails)) < len(tails) or not all(tails):
        raise ValueError(
            f"The tokenizer gives two of the labels {list(labels)} the same tokens after {cue!r}, {tails}, so a model "
            "can't tell them apart. Choose other labels, or give the tokenizer that belongs to the model."
        )
    head = min(_shared(tails), min(map(len, tails)) - 1)
    return LabelTokens(len(alone) - same, tails[0][:head], tuple(tail[head:] for tail in tails))


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
