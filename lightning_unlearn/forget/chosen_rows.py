"""Row numbers of a request, from a file, a class or file names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from lightning_unlearn.classification.data.split import split_rows, targets_of

__all__ = ["class_labels", "named_rows", "numbers_of", "parse_ranges", "read_lines", "read_row_numbers", "write_ranges"]

_RANGES = r"\s*\d+(-\d+)?(\s*,\s*\d+(-\d+)?)*\s*"
_PATHS = ("paths", "files", "filenames", "file_names", "image_paths", "img_paths", "image_files", "filepaths")
_COLUMNS = ("file_name", "filename", "path")


def write_ranges(numbers: Iterable[int]) -> str:
    """Row numbers as text, ``0-2,7``.

    Example:
        >>> write_ranges([7, 0, 1, 2])
        '0-2,7'
    """
    ordered = sorted(numbers)
    starts = [0, *(place + 1 for place, (a, b) in enumerate(pairwise(ordered)) if b != a + 1), len(ordered)]
    runs = [(ordered[first], ordered[last - 1]) for first, last in pairwise(starts) if first < last]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_ranges(text: str) -> list[int]:
    """Row numbers of a text such as ``0-2,7``.

    Raises:
        ValueError: If it has anything else.

    Example:
        >>> parse_ranges("0-2,7")
        [0, 1, 2, 7]
    """
    if not re.fullmatch(_RANGES, text):
        raise ValueError(f"Row numbers are written like 0-2,7, but got {text[:60]!r}.")
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def read_row_numbers(source: Any) -> list[int] | list[bool]:
    """Row numbers, or a mask, as they are given on the command line.

    Args:
        source: A list of numbers; a text such as ``0-2,7``; or a file: ``.npy``, ``.json`` (a list), or text with one
            number a line, or several with commas.

    Raises:
        FileNotFoundError: If it is neither numbers nor a file.
        ValueError: If the file has something else.
    """
    if isinstance(source, (list, tuple)):
        return list(source)
    text = str(source)
    if re.fullmatch(_RANGES, text):
        return parse_ranges(text)
    path = Path(text)
    if not path.is_file():
        raise FileNotFoundError(
            f"--rows {text} is neither a file (looked in {Path.cwd()}) nor row numbers such as 0-99,205."
        )
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False).reshape(-1).tolist()
        content = path.read_text(encoding="utf-8-sig")
        return json.loads(content) if path.suffix == ".json" else _numbers_in(content)
    except ValueError as error:
        raise ValueError(f"{path} has no row numbers, one a line, counted from 0: {error}") from None


def _numbers_in(content: str) -> list[int]:
    numbers: list[int] = []
    for number, line in enumerate(content.splitlines(), 1):
        words = re.split(r"[\s,;]+", line.strip())
        for word in filter(None, words):
            if not re.fullmatch(r"-?\d+", word):
                raise ValueError(f"line {number} has {word!r}.")
            numbers.append(int(word))
    if not numbers:
        raise ValueError("it is empty.")
    return numbers


def read_lines(path: str) -> list[str]:
    """Lines of a text file that are not empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path} with file names, one a line (looked in {Path.cwd()}).")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty. It should have the names of the files to forget, one a line.")
    return lines


def numbers_of(
    dataset: Any,
    rows: Any = None,
    classes: Any = None,
    files: str | None = None,
    labels: Tensor | None = None,
) -> list[int]:
    """Row numbers of the rows to forget, ascending.

    Args:
        dataset: The training set.
        rows: Row numbers, as for `read_row_numbers`.
        classes: A class or several, by number or by the name that the dataset's ``classes`` has.
        files: Text file with names of files of the dataset, one a line.
        labels: Label of each row, where the dataset does not tell them apart from its rows.

    Raises:
        ValueError: If the rows are not given in exactly one way, or there are no such rows, classes or files, or all
            rows would be forgotten.
    """
    given = {"--rows": rows, "--class": classes, "--files": files}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"Give one of --rows (a file of row numbers), --class and --files (a file of file names), but got "
            f"{', '.join(named) or 'none of them'}."
        )
    if classes is not None:
        targets = labels if labels is not None else targets_of(dataset)
        try:
            return split_rows(targets, forget_class=class_labels(dataset, classes)).forget.tolist()
        except ValueError as error:
            raise ValueError(str(error).replace("forget_class=", "The classes to forget (--class) are ")) from None
    if files is not None:
        numbers: Sequence[int] = named_rows(dataset, read_lines(files))
    else:
        numbers = read_row_numbers(rows)
    try:
        return split_rows(torch.zeros(len(dataset)), forget_indices=numbers).forget.tolist()
    except ValueError as error:
        text = str(error).replace("forget_indices", "The row numbers")
        raise ValueError(f"{text} They count the rows of the training set, from 0.") from None


def class_labels(dataset: Any, classes: Any) -> list[int]:
    """Labels of classes that are given by number or name."""
    wanted = classes if isinstance(classes, (list, tuple)) else [classes]
    names = _attribute(dataset, "classes")
    labels = []
    for name in wanted:
        if isinstance(name, int) and not isinstance(name, bool):
            labels.append(name)
        elif names is not None and str(name) in list(map(str, names)):
            labels.append(list(map(str, names)).index(str(name)))
        else:
            known = f"It has {list(names)}" if names is not None else "It names none, so give the number of the class"
            raise ValueError(f"The training set has no class {name!r}. {known}.")
    return labels


def _attribute(dataset: Any, name: str) -> Any:
    """An attribute of a dataset, or of the one that it is a part of."""
    while (value := getattr(dataset, name, None)) is None and isinstance(dataset, Subset):
        dataset = dataset.dataset
    return value


def named_rows(dataset: Any, names: Sequence[str]) -> list[int]:
    """Rows whose files have these names.

    Args:
        dataset: Has the paths of its rows in ``samples`` or ``imgs``, as torchvision's folders do, in ``paths``,
            ``files`` or ``filenames``, or in a column ``file_name``; or is a ``Subset`` or ``ConcatDataset`` of such.
        names: Paths, their ends, or file names.

    Raises:
        ValueError: If the dataset has no paths, or a name is of no row or of several.
    """
    paths = _paths(dataset)
    if paths is None:
        raise ValueError(
            f"{type(dataset).__name__} does not tell the files of its rows. Give it an attribute `paths`, one a row, "
            "or give row numbers: --rows."
        )
    by_name: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        by_name.setdefault(PurePath(path).name, []).append(number)
    numbers = []
    for name in names:
        parts = PurePath(name).parts
        found = [n for n in by_name.get(PurePath(name).name, []) if PurePath(paths[n]).parts[-len(parts) :] == parts]
        if len(found) != 1:
            example = ", ".join(paths[n] for n in found[:3]) or f"they are like {paths[0]}"
            raise ValueError(
                f"The training set has {len(found)} rows of a file {name!r}: {example}. Give a name of one file, with "
                "as many folders before it as are needed."
            )
        numbers += found
    return numbers


def _paths(dataset: Any) -> list[str] | None:
    if isinstance(dataset, Subset):
        whole = _paths(dataset.dataset)
        return None if whole is None else [whole[int(i)] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_paths(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [path for part in parts for path in part or []]
    for name in ("samples", "imgs"):
        samples = getattr(dataset, name, None)
        if isinstance(samples, (list, tuple)) and samples and isinstance(samples[0], (list, tuple)):
            return [str(path) for path, *_ in samples]
    for name in _PATHS:
        values = getattr(dataset, name, None)
        if isinstance(values, (list, tuple, np.ndarray)) and len(values) == len(dataset):
            return [str(value) for value in values]
    column = next((name for name in _COLUMNS if name in getattr(dataset, "column_names", ())), None)
    return None if column is None else [str(value) for value in dataset[column]]
