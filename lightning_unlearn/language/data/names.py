"""Names in rows, which find other rows about the same entities."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_unlearn.core.sources import is_missing
from lightning_unlearn.language.chat import content_text
from lightning_unlearn.language.data.columns import Columns

__all__ = ["Names"]

_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_POSSESSIVE = re.compile(r"['’]s$")
_LONGEST = 8  # words; a longer target is a sentence
_DIGITS = 5  # years and amounts have fewer


class Names:
    """Names in the rows to forget, and whether a text has one of them.

    Names are what the columns ``entity``, ``target`` and ``accept`` hold, and in questions, answers and texts every
    word with a capital letter, every run of such words, every e-mail address, and every number of five digits or more.
    A word that also occurs in lower case in ordinary text is not a name, unless it is in a run or in ``entity``. In
    scripts without capital letters, only the columns give names.

    Args:
        rows: The rows to forget.
        columns: Names of their columns.
        ordinary: Texts that are not about the rows.
        further: More names.

    Example:
        >>> rows = [{"question": "Where was Rose Miller born?", "answer": "In Lima.", "target": "Lima"}]
        >>> names = Names(rows, Columns(), ordinary=["Where does a rose grow?", "This is where it is born."])
        >>> names.occur_in("A rose smells."), names.occur_in("Ask Ms Miller."), names.occur_in("lima beans")
        (False, True, True)
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        columns: Columns,
        ordinary: Iterable[str],
        further: Sequence[str] = (),
    ) -> None:
        self._ordinary = {word for text in ordinary for word in _words(text) if word == word.lower()}
        self._any_case: set[tuple[str, ...]] = set()
        self._capital: set[tuple[str, ...]] = set()
        self._parts: set[str] = set()
        for name in further:
            self._add(name)
        for row in rows:
            self._read(row, columns)
        self._lengths = sorted({len(words) for words in self._any_case | self._capital})

    def __len__(self) -> int:
        return len(self._any_case) + len(self._capital) + len(self._parts)

    def occur_in(self, text: str) -> bool:
        """Whether a text has one of the names, as whole words; those of columns in any case."""
        folded, words = text.casefold(), _words(text)
        if any(part in folded for part in self._parts):
            return True
        small = [word.casefold() for word in words]
        for length in self._lengths:
            for start in range(len(words) - length + 1):
                found = tuple(small[start : start + length])
                if found in self._any_case:
                    return True
                if found in self._capital and all(map(_is_capital, words[start : start + length])):
                    return True
        return False

    def _read(self, row: Mapping[str, Any], columns: Columns) -> None:
        for name in _texts(row.get(columns.entity)):
            self._add(name)
        for name in (*_texts(row.get(columns.target)), *_texts(row.get(columns.accept))):
            words = _words(name)
            if not all(word.casefold() in self._ordinary or (word.isdigit() and len(word) < _DIGITS) for word in words):
                self._add(name)
        for column in (columns.question, columns.answer, columns.text):
            for text in _texts(row.get(column)):
                self._find(text)
        messages = row.get(columns.messages)
        if not is_missing(messages):
            for message in columns.conversation(row, "A row to forget"):
                self._find(content_text(message))

    def _add(self, name: str) -> None:
        """A name in any case."""
        words = tuple(word.casefold() for word in _words(name))
        if any(character.isalpha() and character.lower() == character.upper() for character in name):
            self._parts.add(name.strip().casefold())  # its script may put no space between words
        elif 0 < len(words) <= _LONGEST:
            self._any_case.add(words)

    def _find(self, text: str) -> None:
        """Add the names that a text shows by their form: addresses, numbers and capitals."""
        self._parts |= {address.casefold() for address in _MAIL.findall(text)}
        run: list[str] = []
        end = 0
        for found in _WORD.finditer(text):
            word = _POSSESSIVE.sub("", found[0])
            if text[end : found.start()].strip(" ") or not _is_capital(word):
                run = []
            end = found.end()
            if sum(character.isdigit() for character in word) >= _DIGITS:
                self._any_case.add((word.casefold(),))
            if not _is_capital(word):
                continue
            run = [*run, word.casefold()][-_LONGEST:]
            if len(word) > 1 and word.casefold() not in self._ordinary:
                self._capital.add((word.casefold(),))
            self._capital |= {tuple(run[start:]) for start in range(len(run) - 1)}


def _texts(value: Any) -> list[str]:
    """The texts of a cell that holds one or a list of them."""
    values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    return [str(part) for part in values if not is_missing(part)]


def _words(text: str) -> list[str]:
    return [_POSSESSIVE.sub("", word) for word in _WORD.findall(text)]


def _is_capital(word: str) -> bool:
    return word[:1].isupper() and word.partition("'")[0] != "I"
