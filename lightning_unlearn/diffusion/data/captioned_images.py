"""Data of captioned images, for methods that learn from images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.pairing import Role
from lightning_unlearn.core.sources import find_tokenizer, load_rows
from lightning_unlearn.diffusion.data.prompts import PromptDataModule, PromptRows, warn_of_shared_prompts

__all__ = ["CaptionedImageDataModule", "CaptionedImages"]

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_CAPTIONS = ("caption", "text", "prompt")


class CaptionedImages(Dataset):
    """Images in [-1, 1] with the tokens of their captions and anchors.

    Args:
        rows: By number a row with ``image``: a path, a PIL image, or colours in [0, 1], ``(3, H, W)``.
        prompts: Tokens of the captions.
        size: Side in pixels. Other images are resized so that their shorter side fits, and cropped at the centre.
        masked: Whether rows have a ``mask`` of where the concept is: a path, a PIL image, or a tensor ``(1, H, W)``.
    """

    def __init__(self, rows: Any, prompts: PromptRows, size: int, masked: bool = False) -> None:
        self.rows, self.prompts, self.size, self.masked = rows, prompts, size, masked

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row, prompt = self.rows[i], self.prompts[i]
        mask = {"mask": (pixels(row["mask"], self.size, 1) > 0.5).float()} if self.masked else {}
        return {"pixel_values": pixels(row["image"], self.size) * 2 - 1, **mask, **prompt}


class CaptionedImageDataModule(PromptDataModule):
    """Captioned images to forget, and captioned images to keep.

    A forget row has ``pixel_values`` ``(B, 3, size, size)`` in [-1, 1], ``input_ids`` and ``attention_mask`` ``(B, L)``
    of its caption, ``anchor_input_ids`` and ``anchor_attention_mask`` of its anchor, which replaces the concept, and
    its ``index``. A retain row has no anchor. A ``mask`` is an image that is white where the concept is, and becomes
    ``(B, 1, size, size)`` of 0 and 1; either all rows of a set have one, or none. A set is one of these:

    * a folder with a table ``metadata.jsonl`` (or ``.csv``, ``.parquet``) as ``datasets`` has it: ``file_name``, the
      caption as ``caption``, ``text`` or ``prompt``, and optionally ``anchor`` and ``mask``, a file; or such a table
      itself;
    * a folder of images for each class, ``root/<class>/**/*.png``, captioned by the template ``caption``; images that
      lie directly in ``root`` form one class, which has the name of this folder;
    * a map-style dataset or a list of rows with ``image`` (colours in [0, 1], ``(3, H, W)``; a PIL image; or a path),
      a caption, and optionally ``anchor`` and ``mask``, such as
      [`MiniCanvas`][lightning_unlearn.MiniCanvas].

    Args:
        forget: Images to forget; with ``concept``, images of the anchor.
        retain: Images to keep; ``None`` for methods without a retain term.
        anchor: Anchor of the forget rows that have none: a caption; or words of captions and their replacements, such
            as ``{"sketch": "photo"}``, which keeps the rest of the caption.
        concept: For Concept Ablation, whose images show the anchor: makes a caption name the concept, by a template
            such as ``"{} in the style of Van Gogh"``, or by words and their replacements, such as
            ``{"cat": "grumpy cat"}``. The original caption is then the anchor.
        caption: Template of the captions if classes are folders; ``{}`` is the name of the class, with spaces for
            underscores.
        size: Side in pixels that the model was made for.
        heldout: Further named sets that are only evaluated.
        tokenizer: A ``CLIPTokenizer``, or the folder or hub id of one; by default the module's own.
        batch_size: Forget rows in a batch, per process.
        retain_batch_size: Retain rows in a batch, per process; by default as many.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling and pairing.
        num_workers: Processes that load data.

    Raises:
        FileNotFoundError: If a folder, a table or an image is missing.
        ValueError: If a set is empty, a row has no image or no caption, some rows have a mask and others none,
            replacements leave a caption as it is, or both ``anchor`` and ``concept`` are given.

    Example:
        >>> from lightning_unlearn.diffusion.data.miniature import MiniCanvas
        >>> data = CaptionedImageDataModule(MiniCanvas(2, styles=["sketch"]), anchor="a photo", size=32)
    """

    def __init__(
        self,
        forget: Any,
        retain: Any = None,
        anchor: str | dict[str, str] = "",
        concept: str | dict[str, str] | None = None,
        caption: str = "a photo of a {}",
        size: int = 512,
        heldout: dict[str, Any] | None = None,
        tokenizer: Any = None,
        batch_size: int = 4,
        retain_batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        fixed = anchor if isinstance(anchor, str) else ""
        super().__init__(forget, retain, fixed, heldout, tokenizer, 1, batch_size, retain_batch_size, epoch, seed)
        if at_least("size", size, 8) % 8:
            raise ValueError(f"size must be a multiple of 8, as diffusion models need, but got {size}.")
        if anchor == {}:
            raise ValueError("anchor is a caption, or words of captions and their replacements, but got no words.")
        if concept is not None and anchor:
            raise ValueError("With concept, the captions are the anchors. Give concept or anchor, not both.")
        if concept is not None and ("{}" not in concept if isinstance(concept, str) else not concept):
            raise ValueError(
                "concept is a template with {} for the caption, or words of captions and their replacements, but got "
                f"{concept!r}."
            )
        self.replacements = {} if isinstance(anchor, str) else dict(anchor)
        self.concept = concept
        self.caption, self.size, self.num_workers = caption, size, num_workers

    def setup(self, stage: str) -> None:
        """Find the images and tokenize the captions, once."""
        if self.sets:
            return
        tokenizer = find_tokenizer(self.tokenizer, self.trainer, "CLIPTokenizer")
        for name, source in self.sources.items():
            if source is None:
                continue
            rows = _files(name, Path(source), self.caption) if isinstance(source, (str, Path)) else source
            texts, masked = _captions(name, rows)
            pairs = [self._pair(n, text) if name == "forget" else (text["caption"], "") for n, text in enumerate(texts)]
            captions, anchors = ([pair[i] for pair in pairs] for i in range(2))
            prompts = PromptRows(captions, anchors if name == "forget" else None, tokenizer, name=name)
            self.sets[name] = CaptionedImages(rows, prompts, self.size, masked)
        retain = self.sets.get("retain")
        warn_of_shared_prompts(self.sets["forget"].prompts, None if retain is None else retain.prompts)

    def _pair(self, number: int, row: Mapping[str, str]) -> tuple[str, str]:
        """Caption and anchor of a row to forget."""
        caption = row["caption"]
        if "anchor" in row:
            return caption, row["anchor"]
        if isinstance(self.concept, str):
            return self.concept.replace("{}", caption), caption
        if self.concept is not None:
            return _replaced(number, caption, self.concept), caption
        return caption, _replaced(number, caption, self.replacements) if self.replacements else self.anchor


def _replaced(number: int, caption: str, replacements: Mapping[str, str]) -> str:
    words = {word.lower(): replacement for word, replacement in replacements.items()}
    pattern = rf"(?<!\w)({'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})(?!\w)"
    replaced, count = re.subn(pattern, lambda match: words[match[1].lower()], caption, flags=re.IGNORECASE)
    if not count:
        raise ValueError(
            f"Row {number} of the forget set has the caption {caption!r}, in which nothing is replaced: it has none of "
            f"the words {sorted(replacements)}. Add the words that occur there, or give the row an anchor of its own."
        )
    return replaced


def _captions(name: str, rows: Any) -> tuple[list[dict[str, str]], bool]:
    """Caption and anchor of each row of a set, and whether the rows have masks."""
    texts, masked = [], []
    for number in range(len(rows)):
        row = rows[number]
        columns = sorted(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        if not isinstance(row, Mapping) or row.get("image") is None:
            raise ValueError(f"Row {number} of the {name} set has no 'image'; it has {columns}.")
        caption = next((row[key] for key in _CAPTIONS if isinstance(row.get(key), str)), None)
        if caption is None:
            raise ValueError(
                f"Row {number} of the {name} set has no text under {', '.join(_CAPTIONS)}; it has {columns}."
            )
        anchor = row.get("anchor")
        texts.append({"caption": caption} | ({"anchor": anchor} if isinstance(anchor, str) and anchor.strip() else {}))
        masked.append(row.get("mask") is not None)
    if not texts:
        raise ValueError(f"The {name} set is empty. Give it at least one image with a caption.")
    if any(masked) and not all(masked):
        raise ValueError(
            f"Row {masked.index(False)} of the {name} set has no 'mask', but others have. Give all or none."
        )
    return texts, all(masked)


def _files(name: str, path: Path, template: str) -> list[dict[str, Any]]:
    """Rows of a table of images, or of a folder of classes."""
    tables = [path / f"metadata{end}" for end in _TABLES] if path.is_dir() else [path]
    table = next((file for file in tables if file.suffix.lower() in _TABLES and file.is_file()), None)
    if table is None and not path.is_dir():
        raise FileNotFoundError(
            f"{name}={str(path)!r} is neither a folder of images nor a table of them ({', '.join(_TABLES)}); "
            f"looked in {Path.cwd()}."
        )
    if table is None:
        classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
        kinds = [(path, sorted(path.glob("*"))), *((folder, sorted(folder.rglob("*"))) for folder in classes)]
        kept = [(folder.resolve().name, p) for folder, files in kinds for p in files if p.suffix.lower() in _IMAGES]
        rows: list[dict[str, Any]] = [
            {"image": file, "caption": template.replace("{}", kind.replace("_", " "))} for kind, file in kept
        ]
    else:
        rows = load_rows(table)
        for row in rows:
            named = {"image": row.pop("file_name", None), "mask": row.get("mask")}
            row |= {key: table.parent / value if value else None for key, value in named.items()}
        missing = [str(row[key]) for key in ("image", "mask") for row in rows if row[key] and not row[key].is_file()]
        if missing:
            raise FileNotFoundError(f"{table} names {len(missing)} images that do not exist, such as {missing[0]}.")
    if not rows:
        raise ValueError(
            f"The {name} set ({path}) has no images. Give a folder with metadata.jsonl, or with images "
            f"({', '.join(_IMAGES)}) in a folder for each class."
        )
    return rows


def pixels(image: Any, size: int, channels: int = 3) -> Tensor:
    """Colours in [0, 1], shape ``(channels, size, size)``; of one channel by the nearest pixels."""
    if isinstance(image, Tensor) and image.shape == (channels, size, size) and image.is_floating_point():
        return image
    try:
        import numpy as np
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError('Image files need pillow: pip install "lightning-unlearn[diffusion]"') from None
    if isinstance(image, Tensor):
        if image.dim() != 3 or len(image) != channels or not image.is_floating_point():
            raise ValueError(
                f"{'An image' if channels == 3 else 'A mask'} is numbers in [0, 1] of shape ({channels}, H, W), but "
                f"got {tuple(image.shape)} of {image.dtype}."
            )
        values = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        image = Image.fromarray(values.expand(-1, -1, 3).numpy())
    elif isinstance(image, (str, Path)):
        with Image.open(image) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    how = Image.Resampling.BICUBIC if channels == 3 else Image.Resampling.NEAREST
    fitted = ImageOps.fit(image.convert("RGB"), (size, size), how)
    return torch.tensor(np.asarray(fitted)).permute(2, 0, 1)[:channels].float() / 255
