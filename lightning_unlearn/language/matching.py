"""Marking of generated answers: whether a text gives an accepted one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Literal

__all__ = ["Match", "contains_words", "matcher", "same_text"]

Match = Literal["words", "exact"]

_PUNCTUATION = ("Po", "Ps", "Pe", "Pi", "Pf", "Zs")
_SIGNS = "#%&*@/\\"  # punctuation to Unicode, but a part of names such as C#
# Scripts that put no space between words, or a particle after one: Thai, Lao, Burmese, Khmer, kana, Han and Hangul.
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF)),
    *((0x2E80, 0x9FFF), (0xAC00, 0xFAFF), (0x20000, 0x3FFFF)),
)


def contains_words(text: str, accepted: str) -> bool:
    """Whether a text contains an accepted answer as whole words, in any case.

    Punctuation at the ends of the accepted answer does not count. In scripts that do not separate words by spaces, any
    occurrence counts.

    Example:
        >>> contains_words("It is ROME, of course.", "Rome."), contains_words("Ask Jerome.", "Rome")
        (True, False)
    """
    text, accepted = _plain(text), _bare(accepted)
    start = text.find(accepted)
    while accepted and start >= 0:
        end = start + len(accepted)
        if not (_joined(text[:start], accepted) or _joined(accepted, text[end:])):
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


def matcher(match: Match | Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """The function ``(text, accepted) -> whether it matches`` of a name; a function is returned as it is."""
    return match if callable(match) else {"words": contains_words, "exact": same_text}[match]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def _bare(text: str) -> str:
    plain = _plain(text)
    inner = [i for i, c in enumerate(plain) if unicodedata.category(c) not in _PUNCTUATION or c in _SIGNS]
    return plain[inner[0] : inner[-1] + 1] if inner else plain


def _joined(left: str, right: str) -> bool:
    """Whether the end of one text and the beginning of another are of one word."""
    return _in_word(left[-1:]) and _in_word(right[:1])


def _in_word(character: str) -> bool:
    # Letters, marks (vowel signs of Indic scripts) and numbers.
    if not character or unicodedata.category(character)[0] not in "LMN":
        return False
    return not any(low <= ord(character) <= high for low, high in _UNSPACED)
