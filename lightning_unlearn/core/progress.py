"""Progress of work outside Lightning's loops: a bar in a terminal or lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import IO, Any, TypeVar

from tqdm import tqdm

from lightning_unlearn.core.distributed import rank

__all__ = ["LogLines", "counter", "is_interactive", "progress"]

T = TypeVar("T")


def is_interactive(stream: IO[str]) -> bool:
    """Whether a line that is written to a stream can be overwritten: in a terminal or a notebook, but not in a file.

    Args:
        stream: Such as ``sys.stderr``.
    """
    return "ipykernel" in sys.modules or stream.isatty()


class LogLines:
    """Progress as lines of a log.

    Args:
        description: First words of each line.
        total: Number of items, if that is known.
        done: Items that are finished already.
        unit: Name of an item.
        closing: Whether the last line is written however little time has passed.
        seconds: Time between two lines.

    Example:
        >>> with LogLines("RECE", 3, unit="round", seconds=0.0) as lines:
        ...     lines.text()
        'RECE: 0 of 3 rounds, 0:00'
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        done: int = 0,
        unit: str = "",
        closing: bool = False,
        seconds: float = 30.0,
    ) -> None:
        self.description, self.total, self.done, self.unit = description, total, done, unit
        self.closing, self.seconds = closing, seconds
        self.start = self.written = time.monotonic()

    def __enter__(self) -> LogLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.closing and kind is None:
            self._write()

    def update(self, number: int = 1) -> None:
        """Count items, and write a line where it is time for one.

        Args:
            number: Items that have been finished since the last call.
        """
        self.done += number
        if time.monotonic() - self.written >= self.seconds and self.done != self.total:
            self._write()

    def text(self) -> str:
        """What the line says now."""
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        of = "" if self.total is None else f" of {self.total}"
        unit = "" if not self.unit else f" {self.unit}s"
        return f"{self.description}: {self.done}{of}{unit}, {minutes}:{seconds:02d}"

    def _write(self) -> None:
        self.written = time.monotonic()
        print(self.text(), file=sys.stderr, flush=True)


def counter(
    description: str, total: int | None = None, done: int = 0, unit: str = "", delay: float | None = None
) -> Any:
    """A context manager whose method ``update(number)`` shows progress on the first process.

    Args:
        description: Title of the bar.
        total: Number of items, if that is known.
        done: Items that are finished already.
        unit: Name of an item.
        delay: Show nothing of work that takes fewer seconds, and nothing when it has ended; by default, what was done
            stays on the screen.
    """
    if not is_interactive(sys.stderr) and rank() == 0:
        return LogLines(description, total, done, unit, closing=delay is None)
    shown = {"leave": delay is None, "delay": delay or 0.0}
    return tqdm(total=total, initial=done, desc=description, unit=unit or "it", disable=rank() != 0, **shown)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items, with a bar on the first process if they take more than two seconds.

    In a log there is a line every half minute instead.

    Args:
        items: What is gone through.
        description: Title of the bar.
        total: Their number, if they have no length.

    Example:
        >>> list(progress(range(3), "UCE: layers"))
        [0, 1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with counter(description, total, delay=2.0) as shown:
        for item in items:
            yield item
            shown.update(1)
