"""Choices of the next token: sampling that no batch changes, and a stop where the text says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.continuation import Choose

__all__ = ["RATING_BEGINS", "Sampled", "StopsWhere", "rating_begins"]

RATING_BEGINS = re.compile(r"(?:^|(?<=\s))[*_#\s]*\brating[*_\s]*[:=\uff1a]", re.IGNORECASE)
"""Where a rating begins in what a judge writes."""


def rating_begins(text: str) -> bool:
    """Whether a rating begins in a text."""
    return RATING_BEGINS.search(text) is not None


class Sampled:
    """Samples each row with random numbers of its own, whatever rows run beside it.

    Args:
        temperature: Divides the logits.
        seed: Chooses the random numbers.
        keys: A number for each row.
    """

    def __init__(self, temperature: float, seed: int, keys: Sequence[int]) -> None:
        self.temperature, self.seed, self.keys = above("temperature", temperature, 0), seed, list(keys)

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """Token of each row whose share of the cumulative probability holds the row's random number."""
        drawn = [torch.rand(1, generator=keyed_generator(self.seed, self.keys[row], step)) for row in rows]
        shares = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        places = torch.stack(drawn).to(shares) * shares[:, -1:]
        return torch.searchsorted(shares, places, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


class StopsWhere:
    """Ends an answer when its text meets a condition.

    Args:
        choose: Chooses the tokens until then.
        tokenizer: A Hugging Face tokenizer.
        end: The token that ends an answer.
        done: Whether a text is to end.
        window: How many of the last tokens ``done`` reads; by default all.
    """

    def __init__(
        self, choose: Choose, tokenizer: Any, end: int, done: Callable[[str], bool], window: int | None = None
    ) -> None:
        self.choose, self.tokenizer, self.end, self.done = choose, tokenizer, end, done
        self._first = 0 if window is None else -window
        self._written: dict[int, list[int]] = {}

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """The end where the condition is met, and what is chosen elsewhere."""
        if step == 0:
            self._written |= {row: [] for row in rows}
        tokens = self.choose(logits, rows, step)
        texts = self.tokenizer.batch_decode([self._written[row][self._first :] for row in rows])
        done = [self.done(text) for text in texts]
        tokens = tokens.masked_fill(torch.tensor(done, device=tokens.device), self.end)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            self._written[row].append(token)
        return tokens
