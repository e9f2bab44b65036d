"""Progress bars of work outside Lightning's loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from lightning_unlearn.core.distributed import rank

__all__ = ["progress"]

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar on the first process where they take more than two seconds.

    Args:
        items: What is gone through.
        description: Title of the bar.
        total: Their number, if they have no length.

    Example:
        >>> list(progress(range(3), "UCE: layers"))
        [0, 1, 2]
    """
    yield from tqdm(items, desc=description, total=total, disable=rank() != 0, leave=False, delay=2.0)
