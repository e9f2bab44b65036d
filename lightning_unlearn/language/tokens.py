"""Tokens of texts, with labels on the tokens of answers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from operator import itemgetter
from typing import Any, NamedTuple

from lightning_unlearn.language.chat import Span, Written

__all__ = ["TokenRow", "beginning", "encode", "encode_prompts"]

_ROWS = 1000  # tokenized together; the places of their tokens take more memory than the tokens


class TokenRow(NamedTuple):
    """Tokens of a row; its labels are those of the answer.

    Args:
        prompt: Tokens without a label; none in plain text.
        answer: Tokens with a label.
        continues_answer: Whether the prompt ends with the beginning of the answer.
        unlabelled: Ranges of ``answer`` without a label: the turns between several answers.
    """

    prompt: list[int]
    answer: list[int]
    continues_answer: bool = False
    unlabelled: tuple[tuple[int, int], ...] = ()


def beginning(tokenizer: Any) -> list[int]:
    """Special tokens that a tokenizer puts before a text; what it puts after one is no part of a prompt."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    starts = (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    return list(whole[: next(starts, len(whole) - len(bare))])


def encode_prompts(tokenizer: Any, texts: Sequence[str], special: Sequence[int]) -> list[list[int]]:
    """Tokens of prompts.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts: The prompts.
        special: Special tokens to begin with.
    """
    if not texts:
        return []
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [[*special, *row] for row in ids]


def encode(tokenizer: Any, texts: Sequence[Written], special: Sequence[int], eos: int | None) -> list[TokenRow]:
    """Tokens of prompts with their answers, tokenized as one text.

    A token belongs to an answer if it contains a visible character of it, even together with the end of the prompt, or
    if it begins within the white space before it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts: What is written, and the places of the answers.
        special: Special tokens to begin with.
        eos: The token that ends an answer that is open.
    """
    rows: list[TokenRow] = []
    for first in range(0, len(texts), _ROWS):
        part = texts[first : first + _ROWS]
        found = zip(part, *_tokenized(tokenizer, part), strict=True)
        rows += [_row(text, ids, ranges, special, eos) for text, ids, ranges in found]
    return rows


def _row(
    text: Written, ids: list[int], ranges: list[tuple[int, int]], special: Sequence[int], eos: int | None
) -> TokenRow:
    begin = ranges[0][0]
    ends = [eos] if text.open and eos is not None and ids[-1:] != [eos] else []
    gaps = tuple((end - begin, start - begin) for (_, end), (start, _) in pairwise(ranges))
    return TokenRow([*special, *ids[:begin]], [*ids[begin:], *ends], text.continues_answer, gaps)


def _tokenized(tokenizer: Any, texts: Sequence[Written]) -> tuple[list[list[int]], Iterator[list[tuple[int, int]]]]:
    """Token ids of each text, and the range of tokens of each of its answers."""
    if not getattr(tokenizer, "is_fast", False):
        ids = tokenizer([text.text for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
        return ids, (
            [_range_by_decoding(tokenizer, row, text.text, span) for span in text.answers]
            for text, row in zip(texts, ids, strict=True)
        )
    encoded = tokenizer(
        [text.text for text in texts],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    return encoded["input_ids"], (
        [_range(places, span) for span in text.answers]
        for text, places in zip(texts, encoded["offset_mapping"], strict=True)
    )


def _range(places: list[tuple[int, int]], span: Span) -> tuple[int, int]:
    """Tokens of a span, by the characters of each token."""

    def starts(i: int) -> int:
        # Some tokenizers leave white space out of a token's characters.
        return min(places[i][0], places[i - 1][1]) if i else places[i][0]

    begin = bisect_right(places, span.start, key=itemgetter(1))
    while begin > 0 and starts(begin - 1) >= span.start:  # tokens without a character
        begin -= 1
    while begin < len(places) and starts(begin) < span.start and places[begin][1] <= span.first:
        begin += 1
    end = begin
    if span.end >= places[-1][1]:
        return begin, len(places)
    while end < len(places) and starts(end) < span.end:
        end += 1
    return begin, end


def _range_by_decoding(tokenizer: Any, ids: list[int], text: str, span: Span) -> tuple[int, int]:
    """Tokens of a span, where the tokenizer does not tell the characters of a token."""
    begin, whole = _tokens_before(tokenizer, ids, text[: span.start])
    if not whole and _tokens_before(tokenizer, ids, text[: span.first])[0] > begin:
        begin += 1  # it ends with white space
    if span.end >= len(text):
        return begin, len(ids)
    end, whole = _tokens_before(tokenizer, ids, text[: span.end])
    return begin, end if whole else end + 1


def _tokens_before(tokenizer: Any, ids: list[int], text: str) -> tuple[int, bool]:
    """How many tokens lie within the beginning of a text, and whether they are all of it."""

    def shown(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    alone = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, alone, strict=False)))
    if count == len(alone):
        return count, True
    beginning = shown(alone)
    while count < len(ids) and beginning.startswith(shown(ids[: count + 1])):
        count += 1
    return count, shown(ids[:count]) == beginning
