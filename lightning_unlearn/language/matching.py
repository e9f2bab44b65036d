"""Matching of generated answers against accepted ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

__all__ = ["Match", "contains_words", "matcher", "plain_text", "same_text", "separates_words", "word_recall"]

Match = Literal["words", "exact"]

_PUNCTUATION = ("Po", "Ps", "Pe", "Pi", "Pf", "Zs")
_SIGNS = "#%&*@/\\"  # punctuation to Unicode, but a part of names such as C#
# Scripts that put no space between words, or a particle after one: Thai, Lao, Burmese, Khmer, kana, Han and Hangul.
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF)),
    *((0x2E80, 0x9FFF), (0xAC00, 0xFAFF), (0x20000, 0x3FFFF)),
)


# A number with a sign, groups of thousands or decimals. Dates and versions such as 4.5.2024 are several.
_NUMBER = re.compile(
    r"(?<![\d.,])(?:(?<!\w)-)?"
    r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3})+(?:,\d+)?|\d+(?:[.,]\d+)?)"
    r"(?!\d|[.,]\d)"
)
_NAME_SIGNS = re.compile(r"(?:\+{1,2}|#)(?!\w)")  # as in C++, C# and A+
_WORD = re.compile(r"\w+")
_SUFFIX = re.compile(r"'([^\W\d_]+)")


def plain_text(text: str) -> str:
    """A text in which case, spaces, the encoding of accents and the forms of quotes and dashes make no difference.

    Example:
        >>> plain_text("Who  is Jose\N{COMBINING ACUTE ACCENT}?") == plain_text(
        ...     "who is jos\N{LATIN SMALL LETTER E WITH ACUTE}?"
        ... )
        True
    """
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join("".join(map(_usual, text)).split())


def contains_words(text: str, accepted: str) -> bool:
    """Whether a text contains an accepted answer as whole words, in any case.

    Punctuation at the ends of the accepted answer does not count. In scripts that do not separate words by spaces, any
    occurrence counts. A number is one word with its sign, decimals and groups of thousands: ``4`` is not in ``4.5``,
    and ``1`` not in ``1,000``.

    Example:
        >>> contains_words("It is ROME, of course.", "Rome."), contains_words("Ask Jerome.", "Rome")
        (True, False)
        >>> contains_words("About 4.5 degrees.", "4"), contains_words("About 4.", "4")
        (False, True)
    """
    text, accepted = plain_text(text), _bare(accepted)
    inside = [place for found in _NUMBER.finditer(text) for place in range(found.start() + 1, found.end())]
    start = text.find(accepted)
    while accepted and start >= 0:
        end = start + len(accepted)
        if not ({start, end} & set(inside) or _in_word_at(text, start) or _in_word_at(text, end)):
            return True
        start = text.find(accepted, start + 1)
    return False


def same_text(text: str, accepted: str) -> bool:
    """Whether a text is an accepted answer, in any case and whatever punctuation is at the ends.

    Example:
        >>> same_text("Rome.", "rome"), same_text("It is Rome.", "Rome")
        (True, False)
    """
    return _bare(text) == _bare(accepted)


def word_recall(text: str, accepted: str) -> float:
    """Share of the words of an accepted answer that a text has in their order: ROUGE-L recall, in any script and case.

    In scripts that do not separate words by spaces, each character is a word.

    Example:
        >>> word_recall("The author was born in Kuwait City.", "Basil was born in Kuwait City, Kuwait.")
        0.7142857142857143
    """
    found, wanted = _words(text), _words(accepted)
    if not wanted:
        return 0.0
    places: dict[str, int] = {}
    for i, word in enumerate(wanted):
        places[word] = places.get(word, 0) | 1 << i
    # The longest common subsequence, a row of the table in the bits of one number (Hyyrö, 2004).
    row = all_ones = (1 << len(wanted)) - 1
    for word in found:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & all_ones
    return (len(wanted) - row.bit_count()) / len(wanted)


def matcher(match: Match | Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """The function ``(text, accepted) -> whether it matches`` of a name; a function is returned as it is."""
    return match if callable(match) else {"words": contains_words, "exact": same_text}[match]


def _words(text: str) -> list[str]:
    words = _WORD.findall(plain_text(text))
    return [part for word in words for part in (word if _unspaced(word[0]) else [word])]


def _usual(character: str) -> str:
    """The usual form of a letter of another width, an apostrophe or a dash."""
    if character.isascii():
        return character
    if unicodedata.decomposition(character).startswith(("<wide>", "<narrow>")):
        return unicodedata.normalize("NFKC", character)
    if character in "’‘ʼ`´":  # noqa: RUF001
        return "'"
    return "-" if unicodedata.category(character) == "Pd" or character == "−" else character


def _bare(text: str) -> str:
    plain = plain_text(text)
    inner = [i for i, c in enumerate(plain) if unicodedata.category(c) not in _PUNCTUATION or c in _SIGNS]
    return plain[inner[0] : inner[-1] + 1] if inner else plain


def _in_word_at(text: str, place: int) -> bool:
    """Whether a place in a text is within a word."""
    left, right = text[:place], text[place:]
    if _in_word(left[-1:]) and (_in_word(right[:1]) or _NAME_SIGNS.match(right)):
        return True
    # "can't" and "we're" are one word; "Rome's" ends with a word of its own.
    rest = _SUFFIX.match(right)
    return bool(_in_word(left[-1:]) and rest and rest[1] != "s")


def _in_word(character: str) -> bool:
    # Letters, marks (vowel signs of Indic scripts) and numbers.
    if not character or unicodedata.category(character)[0] not in "LMN":
        return False
    return not _unspaced(character)


def _unspaced(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in _UNSPACED)


def separates_words(text: str, continuation: str) -> bool:
    """Whether a space belongs between a text and its continuation, of which neither has white space there."""
    if not text or not continuation or text[-1].isspace() or continuation[0].isspace():
        return False
    return _in_word(continuation[0]) and not _unspaced(text[-1])
