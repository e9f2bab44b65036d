"""Labelled datasets of image and text files."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_unlearn.classification.data.arrays import Part, Transform
from lightning_unlearn.core.checks import at_least, one_of

__all__ = ["CelebA", "ImageFolder", "Newsgroups", "TextEncoder", "image_tensor"]

CelebAPart = Literal["train", "valid", "test", "all"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class _ImageFiles(Dataset):
    """Labelled image files, each opened when it is read."""

    def __init__(
        self, paths: Sequence[Path], targets: Tensor, groups: Tensor | None, size: int | None, transform: Any
    ) -> None:
        self.paths, self.targets, self.groups = list(paths), targets, groups
        self.size, self.transform = size, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, Tensor]:
        try:
            from PIL import Image
        except ImportError:
            raise ImportError("Image files need pillow: pip install pillow") from None
        with Image.open(self.paths[i]) as image:
            row = image_tensor(image, self.size)
        return row if self.transform is None else self.transform(row), self.targets[i]


class ImageFolder(_ImageFiles):
    """A folder with one subfolder of images per class, as in ImageNet: ``root/<class>/**/*.png``, sorted by class name.

    Args:
        root: Folder that contains the class folders, such as ``imagenet/train``.
        size: Side in pixels that images are resized to; needed if their sizes differ.
        transform: Applied to an image ``(3, H, W)``, in [0, 1], when it is read.

    Raises:
        FileNotFoundError: If a class has no image, or there is no class.
    """

    def __init__(self, root: str, size: int | None = None, transform: Transform | None = None) -> None:
        folders = sorted(path for path in Path(root).iterdir() if path.is_dir())
        self.classes = [path.name for path in folders]
        files = [sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES) for folder in folders]
        empty = [name for name, paths in zip(self.classes, files, strict=True) if not paths]
        if empty or not folders:
            raise FileNotFoundError(
                f"{root} should hold a folder of images for each class, but "
                + (f"{empty} hold none." if empty else "")
                + ("" if empty else "holds no folder.")
            )
        targets = torch.repeat_interleave(torch.arange(len(files)), torch.tensor([len(paths) for paths in files]))
        super().__init__([path for paths in files for path in paths], targets, None, size, transform)


class CelebA(_ImageFiles):
    """CelebA: ``img_align_celeba/``, ``list_attr_celeba.txt`` and ``list_eval_partition.txt`` in one folder.

    Args:
        root: That folder.
        part: ``"train"``, ``"valid"`` or ``"test"`` of the partition file; ``"all"`` needs no such file.
        attribute: The attribute to classify.
        group: An attribute that defines two groups: images that have it are group 1, all others group 0.
        size: Side in pixels that images are resized to.
        transform: Applied to an image ``(3, H, W)``, in [0, 1], when it is read.

    Raises:
        ValueError: If an attribute or a part is unknown.
    """

    def __init__(
        self,
        root: str,
        part: CelebAPart = "train",
        attribute: str = "Smiling",
        group: str | None = None,
        size: int | None = None,
        transform: Transform | None = None,
    ) -> None:
        parts = ("train", "valid", "test")
        one_of("part", part, CelebAPart)
        folder = Path(root)
        _, header, *lines = (folder / "list_attr_celeba.txt").read_text(encoding="utf-8").splitlines()
        names = header.split()
        unknown = [name for name in (attribute, group) if name is not None and name not in names]
        if unknown:
            raise ValueError(f"CelebA has no attribute {unknown[0]!r}. It has {names}.")
        rows = {words[0]: words[1:] for line in lines if (words := line.split())}
        if part != "all":
            listed = (folder / "list_eval_partition.txt").read_text(encoding="utf-8").splitlines()
            number = {words[0]: int(words[1]) for line in listed if (words := line.split())}
            rows = {name: row for name, row in rows.items() if number[name] == parts.index(part)}

        def column(name: str) -> Tensor:
            return torch.tensor([int(int(row[names.index(name)]) > 0) for row in rows.values()])

        paths = [folder / "img_align_celeba" / name for name in rows]
        super().__init__(paths, column(attribute), None if group is None else column(group), size, transform)


class TextEncoder:
    """Encoder of text as a fixed number of token ids.

    Args:
        length: Tokens per row; longer text is truncated, shorter text is padded with 0.
        vocabulary: Number of ids that words are hashed to.
        tokenizer: Folder or hub id of a Hugging Face tokenizer to use instead of hashing.

    Example:
        >>> TextEncoder(length=4, vocabulary=100)("Forget me, forget me not")
        tensor([69, 31, 69, 31])
    """

    def __init__(self, length: int = 128, vocabulary: int = 20_000, tokenizer: str | None = None) -> None:
        self.length, self.vocabulary = at_least("length", length, 1), at_least("vocabulary", vocabulary, 2)
        self.tokenizer = None
        if tokenizer is not None:
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    def __call__(self, text: str) -> Tensor:
        """Token ids of a text, shape ``(length,)``, int64."""
        if self.tokenizer is not None:
            ids = self.tokenizer(text, truncation=True, max_length=self.length)["input_ids"]
        else:
            words = re.findall(r"\w+", text.lower())[: self.length]
            ids = [1 + zlib.crc32(word.encode()) % (self.vocabulary - 1) for word in words]
        return torch.tensor(ids + [0] * (self.length - len(ids)))


class Newsgroups(Dataset):
    """20 Newsgroups by date: ``20news-bydate-train/<group>/<id>`` and ``20news-bydate-test/<group>/<id>``.

    Args:
        root: Folder that contains these two folders.
        part: ``"train"`` or ``"test"``.
        coarse: Whether the label is the first word of a group's name (``comp``, ``rec``, …); the newsgroups themselves
            then become the groups.
        headers: Whether to keep the header lines above the text, with subject and sender.
        length: Tokens per row.
        vocabulary: Number of ids that words are hashed to.
        tokenizer: Folder or hub id of a Hugging Face tokenizer to use instead of hashing.

    Raises:
        FileNotFoundError: If there is no such folder.
    """

    def __init__(
        self,
        root: str,
        part: Part = "train",
        coarse: bool = False,
        headers: bool = False,
        length: int = 128,
        vocabulary: int = 20_000,
        tokenizer: str | None = None,
    ) -> None:
        folder = Path(root) / f"20news-bydate-{part}"
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.paths = [path for name in names for path in sorted((folder / name).iterdir())]
        fine = torch.tensor([names.index(path.parent.name) for path in self.paths])
        tops = sorted({name.split(".")[0] for name in names})
        self.classes = tops if coarse else names
        top = torch.tensor([tops.index(name.split(".")[0]) for name in names])
        self.targets = top[fine] if coarse else fine
        self.groups = fine if coarse else None
        self.headers, self.encode = headers, TextEncoder(length, vocabulary, tokenizer)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        text = self.paths[i].read_text(encoding="latin-1")
        if not self.headers:
            text = text.partition("\n\n")[2]
        return self.encode(text), self.targets[i]


def image_tensor(image: Any, size: int | None = None) -> Tensor:
    """A PIL image as a tensor ``(3, H, W)`` in [0, 1], resized to a square if a size is given."""
    image = image.convert("RGB")
    if size is not None:
        image = image.resize((size, size))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255
