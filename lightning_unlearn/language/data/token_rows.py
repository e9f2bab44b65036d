"""Datasets of token sequences with supervised answers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from lightning_unlearn.functional.likelihood import IGNORE_INDEX
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["AlternateRows", "RefusalRows", "TokenRows", "collate_tokens"]


class TokenRows(Dataset):
    """Token sequences, supervised after their prompt.

    Args:
        rows: Tokens of each row.
        date: The date that is written in the prompts, if one is.
    """

    def __init__(self, rows: Sequence[TokenRow], date: str | None = None) -> None:
        self.rows, self.date = rows, date
        self.lengths = torch.tensor([len(row.prompt) + len(row.answer) for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        gaps = {"unlabelled": row.unlabelled} if row.unlabelled else {}
        return {"prompt": row.prompt, "answer": row.answer, "index": i, **gaps}


class AlternateRows:
    """Each forget question with one of its alternate answers; every pass over them is shuffled anew.

    Read at ``[row, epoch]`` while training. Read at ``[i]``, it runs through every answer of every row in order, and
    ``i`` is the row's stable ``index``.

    Args:
        prompts: Tokens of each forget question.
        answers: Tokens of the other answers of each question, at least one; the prompt of an answer goes on from that
            of its question.
        seed: Seed of the draw.
        max_length: Longest row in tokens; an answer is cut there.
    """

    def __init__(
        self, prompts: Sequence[list[int]], answers: Sequence[Sequence[TokenRow]], seed: int, max_length: int
    ) -> None:
        self.prompts, self.answers, self.seed, self.max_length = prompts, answers, seed, max_length
        self.starts = [0, *accumulate(map(len, answers))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        if isinstance(key, int):
            if not 0 <= key < len(self):
                raise IndexError(key)
            row = bisect_right(self.starts, key) - 1
            choice = key - self.starts[row]
        else:
            row, epoch = key
            choice = self.choice(row, epoch)
        prompt = self.prompts[row] + self.answers[row][choice].prompt
        return {
            "prompt": prompt,
            "answer": self.answers[row][choice].answer[: self.max_length - len(prompt)],
            "index": self.starts[row] + choice,
        }

    def choice(self, row: int, epoch: int) -> int:
        """Which of its answers a row has in an epoch."""
        number, place = divmod(epoch, len(self.answers[row]))
        return int(torch.randperm(len(self.answers[row]), generator=_draw(self.seed, number, row))[place])


class RefusalRows(AlternateRows):
    """Each forget question with a refusal in place of its answer, drawn anew each epoch by (seed, epoch, row).

    The ``index`` of a row is ``row * K + choice`` with ``K`` refusals.
    """

    def choice(self, row: int, epoch: int) -> int:
        """Which refusal a row has in an epoch."""
        return int(torch.randint(len(self.answers[row]), (), generator=_draw(self.seed, epoch, row)))


def _draw(seed: int, number: int, row: int) -> torch.Generator:
    return keyed_generator(seed - 1, number - 1, row - 1)  # to which the hash of a key adds 1


def collate_tokens(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad token rows on the right. Masks are made from lengths: a pad token may also be a real one.

    Args:
        rows: Dicts with ``prompt`` and ``answer`` (lists of token ids), ``index`` and, if there are such, the ranges of
            the answer that are ``unlabelled``.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` of shape ``(B, T)`` and ``index`` of shape ``(B,)``, int64.
    """
    ids = [torch.tensor(row["prompt"] + row["answer"]) for row in rows]
    labels = [torch.tensor([IGNORE_INDEX] * len(row["prompt"]) + row["answer"]) for row in rows]
    for row, label in zip(rows, labels, strict=True):
        for start, end in row.get("unlabelled", ()):
            label[len(row["prompt"]) + start : len(row["prompt"]) + end] = IGNORE_INDEX
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "index": torch.tensor([row["index"] for row in rows]),
    }
