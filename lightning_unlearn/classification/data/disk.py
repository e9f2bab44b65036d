"""Datasets saved to disk by the `datasets` library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_unlearn.classification.data.arrays import Transform
from lightning_unlearn.classification.data.files import TextEncoder, image_tensor

__all__ = ["DiskRows"]


class DiskRows(Dataset):
    """A dataset written by ``datasets.save_to_disk``, read as ``(input, label)``.

    Images become ``(3, H, W)`` in [0, 1], text becomes token ids, and numbers become a tensor of floats.

    Args:
        path: Folder of a ``Dataset``, or of a ``DatasetDict``.
        split: Name of the split in the ``DatasetDict``.
        input_column: Column of the input.
        label_column: Column of the label, an integer.
        group_column: Column of a fine label or attribute, an integer.
        size: Side in pixels that images are resized to.
        length: Tokens per row of text.
        vocabulary: Number of ids that words are hashed to.
        tokenizer: Folder or hub id of a Hugging Face tokenizer to use instead of hashing.
        transform: Applied to an input when it is read.

    Raises:
        ValueError: If a split or a column is missing.
        ImportError: If datasets is not installed.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
        input_column: str = "image",
        label_column: str = "label",
        group_column: str | None = None,
        size: int | None = None,
        length: int = 128,
        vocabulary: int = 20_000,
        tokenizer: str | None = None,
        transform: Transform | None = None,
    ) -> None:
        try:
            from datasets import Dataset as HubDataset
            from datasets import load_from_disk
        except ImportError:
            raise ImportError('Such folders need datasets: pip install "lightning-unlearn[llm]"') from None
        table = load_from_disk(path)
        if not isinstance(table, HubDataset):
            if split not in table:
                raise ValueError(f"{path} has the splits {sorted(table)}, but got split={split!r}.")
            table = table[split]
        columns = [name for name in (input_column, label_column, group_column) if name is not None]
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}. It has {table.column_names}.")
        self.rows, self.input_column, self.size, self.transform = table, input_column, size, transform
        self.targets = torch.tensor(table[label_column][:])
        self.groups = None if group_column is None else torch.tensor(table[group_column][:])
        self.encode = TextEncoder(length, vocabulary, tokenizer)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Any, Tensor]:
        value: Any = self.rows[i][self.input_column]
        if isinstance(value, str):
            row = self.encode(value)
        elif hasattr(value, "convert"):
            row = image_tensor(value, self.size)
        else:
            row = torch.as_tensor(value, dtype=torch.float32)
        return row if self.transform is None else self.transform(row), self.targets[i]
