"""Exact k-th largest score over sharded tensors, without sorting or a second copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Cutoff", "Place", "top_mask", "top_threshold"]

_CHUNK = 1 << 22  # scores processed at a time: a pass needs about 100 MB beyond the scores
_DIGIT = 16
_BINS = 1 << _DIGIT
_ALL = (1 << 63) - 1

AllReduce = Callable[[Tensor], None]
"""Sums an int64 tensor over all processes, in place."""


class Place(NamedTuple):
    """Location of a piece of scores in the flat vector of all scores.

    Args:
        offset: Flat index of the first score of the tensor that the piece belongs to.
        shape: Shape of that whole tensor.
        start: First row, column, ... of the piece within it.
        size: Shape of the piece.
    """

    offset: int
    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def of_whole(cls, tensor: Tensor, offset: int = 0) -> Place:
        """The place of a tensor that is not part of another one."""
        return cls(offset, tuple(tensor.shape), (0,) * tensor.dim(), tuple(tensor.shape))

    def indices(self, first: int, last: int, device: torch.device) -> Tensor:
        """Flat indices of the piece's elements ``first`` to ``last - 1``."""
        rest = torch.arange(first, last, device=device)
        index = torch.full_like(rest, self.offset)
        stride = 1
        for whole, start, size in zip(reversed(self.shape), reversed(self.start), reversed(self.size), strict=True):
            index += (rest % size + start) * stride
            rest //= size
            stride *= whole
        return index


class Cutoff(NamedTuple):
    """Cutoff of the scores to keep: those above ``value``, and those equal to it up to a flat index.

    Args:
        value: The k-th largest score.
        last: The last flat index at which a score equal to ``value`` is kept.
    """

    value: float
    last: int


def top_threshold(
    scores: Sequence[Tensor], k: int, places: Sequence[Place] | None = None, all_reduce: AllReduce | None = None
) -> Cutoff:
    """Find the exact cutoff of the ``k`` largest scores.

    The bits of non-negative fp32 numbers, read as integers, have the same order as the numbers. A histogram of the
    upper 16 bits, and one of the lower 16 bits of the scores in the crossing bin, therefore give the k-th largest
    score. Among equal scores, those with the lowest flat index are kept, found in the same way. Histograms are summed
    over processes: the result depends neither on their number nor on how scores are distributed, and memory beyond the
    scores is O(1).

    Args:
        scores: Non-negative fp32 scores in pieces of any shape: on each process the scores that it counts.
        k: Number of scores to keep, out of all on all processes.
        places: Location of each piece; by default the pieces follow one another.
        all_reduce: Sums a histogram over processes; ``None`` if one process holds all scores.

    Returns:
        The cutoff for `top_mask`.

    Raises:
        TypeError: If scores are not fp32.
        ValueError: If a score is negative or NaN, or there are fewer than ``k``.

    Example:
        >>> import torch
        >>> top_threshold([torch.tensor([3.0, 1.0, 2.0, 2.0])], k=2)
        Cutoff(value=2.0, last=2)
    """
    places = _in_a_row(scores) if places is None else places
    if k == 0:
        return Cutoff(math.inf, -1)

    upper = _histogram((bits >> _DIGIT for bits, _ in _chunks(scores, places)), scores, all_reduce)
    if int(upper.sum()) < k:
        raise ValueError(f"k={k} scores are to be kept, but there are only {int(upper.sum())}.")
    high, k = _crossing(upper.flip(0), k)
    high = _BINS - 1 - high
    within = (bits[bits >> _DIGIT == high] & (_BINS - 1) for bits, _ in _chunks(scores, places))
    lower = _histogram(within, scores, all_reduce)
    low, k = _crossing(lower.flip(0), k)
    low = _BINS - 1 - low
    pattern = high << _DIGIT | low
    value = torch.tensor(pattern, dtype=torch.int32).view(torch.float32).item()
    if k == int(lower[low]):
        return Cutoff(value, _ALL)

    # More scores equal the threshold than may be kept: find the k-th lowest flat index among them, digit by digit.
    # The number of digits is fixed, because all processes must make the same passes whatever they hold.
    prefix = 0
    for shift in (2 * _DIGIT, _DIGIT, 0):
        tied = (index[bits == pattern] for bits, index in _chunks(scores, places, indexed=True))
        digits = (i[i >> (shift + _DIGIT) == prefix] >> shift & (_BINS - 1) for i in tied)
        digit, k = _crossing(_histogram(digits, scores, all_reduce), k)
        prefix = prefix << _DIGIT | digit
    return Cutoff(value, prefix)


def top_mask(scores: Tensor, cutoff: Cutoff, place: Place | None = None) -> Tensor:
    """Mark the scores of a piece that a cutoff keeps.

    Args:
        scores: Non-negative fp32 scores.
        cutoff: Result of `top_threshold`.
        place: Location of the piece; by default it is the only one.

    Returns:
        Boolean, of the same shape.

    Example:
        >>> import torch
        >>> scores = torch.tensor([3.0, 1.0, 2.0, 2.0])
        >>> top_mask(scores, top_threshold([scores], k=2))
        tensor([ True, False,  True, False])
    """
    mask = scores > cutoff.value
    if cutoff.last == _ALL:
        return mask | (scores == cutoff.value)
    place = Place.of_whole(scores) if place is None else place
    flat, marks = scores.reshape(-1), mask.view(-1)
    for first in range(0, flat.numel(), _CHUNK):
        part = flat[first : first + _CHUNK]
        index = place.indices(first, first + len(part), scores.device)
        marks[first : first + _CHUNK] |= (part == cutoff.value) & (index <= cutoff.last)
    return mask


def _in_a_row(scores: Sequence[Tensor]) -> list[Place]:
    places, offset = [], 0
    for piece in scores:
        places.append(Place.of_whole(piece, offset))
        offset += piece.numel()
    return places


def _chunks(
    scores: Sequence[Tensor], places: Sequence[Place], indexed: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    for piece, place in zip(scores, places, strict=True):
        if piece.dtype != torch.float32:
            raise TypeError(f"Scores must be float32, but got {piece.dtype}. Cast them with .float().")
        flat = piece.detach().reshape(-1)
        for first in range(0, flat.numel(), _CHUNK):
            part = flat[first : first + _CHUNK]
            if not bool((part >= 0).all()):
                raise ValueError("A score is negative or NaN. Check that the gradients it is made of are finite.")
            bits = part.abs().view(torch.int32)  # -0.0 would sort below all other values
            index = place.indices(first, first + len(part), flat.device) if indexed else bits
            yield bits, index


def _histogram(digits: Iterator[Tensor], scores: Sequence[Tensor], all_reduce: AllReduce | None) -> Tensor:
    device = scores[0].device if scores else torch.device("cpu")
    counts = torch.zeros(_BINS, dtype=torch.int64, device=device)
    for part in digits:
        counts += torch.bincount(part, minlength=_BINS)
    if all_reduce is not None:
        all_reduce(counts)
    return counts.cpu()


def _crossing(counts: Tensor, k: int) -> tuple[int, int]:
    """The first bin at which the running count reaches ``k``, and how many of that bin belong to the ``k``."""
    running = counts.cumsum(0)
    at = int(torch.searchsorted(running, torch.tensor(k)))
    return at, k - (int(running[at - 1]) if at else 0)
