"""Decoding of image files in threads, a few batches ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least

__all__ = ["ImageBatches"]


class ImageBatches:
    """Batches of decoded images; each has images of one size.

    Threads decode ahead of the reader. At any time, no more than four batches of 8-bit images are held, however many
    files and sizes there are. A file that can't be decoded is left out and listed in ``broken``.

    Args:
        files: The images, of any format that Pillow opens.
        batch_size: Images in a batch; fewer where sizes differ.
        workers: Threads; by default one per processor, 16 at most.
        size: Side in pixels that images are resized to, as a square, by a bicubic filter; by default they stay as they
            are.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self, files: Sequence[Path], batch_size: int = 64, workers: int | None = None, size: int | None = None
    ) -> None:
        self.files, self.batch_size = files, at_least("batch_size", batch_size, 1)
        self.workers = min(16, os.cpu_count() or 1) if workers is None else at_least("workers", workers, 1)
        self.size = None if size is None else at_least("size", size, 1)
        self.broken: dict[Path, str] = {}
        """What is wrong with the files that could not be decoded."""

    def __iter__(self) -> Iterator[tuple[list[int], Tensor]]:
        """Positions of the files, and their images, ``(B, 3, H, W)``, uint8."""
        waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for place, image in self._images():
            same = waiting.setdefault(tuple(image.shape), [])
            same.append((place, image))
            if len(same) == self.batch_size:
                yield _batch(waiting.pop(tuple(image.shape)))
            elif sum(map(len, waiting.values())) == 2 * self.batch_size:
                yield _batch(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
        for rest in waiting.values():
            yield _batch(rest)

    def _images(self) -> Iterator[tuple[int, Tensor]]:
        places = iter(range(len(self.files)))
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        ahead: deque[tuple[int, Future[Tensor]]] = deque()
        try:
            while True:
                wanted = max(self.batch_size, 2 * self.workers) - len(ahead)
                ahead.extend((i, pool.submit(_decode, self.files[i], self.size)) for i in islice(places, wanted))
                if not ahead:
                    return
                place, future = ahead.popleft()
                try:
                    image = future.result()
                except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of a broken PNG among others
                    self.broken[self.files[place]] = str(error) or type(error).__name__
                    continue
                yield place, image
        finally:
            pool.shutdown(cancel_futures=True)


def _batch(images: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    return [place for place, _ in images], torch.stack([image for _, image in images])


def _decode(file: Path, size: int | None) -> Tensor:
    """Colours ``(3, H, W)``, uint8."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
