"""Data module of all images of a style-object folder, to train judges and models on."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.core.checks import at_least, between
from lightning_unlearn.core.lightning import LightningDataModule
from lightning_unlearn.core.sources import find_tokenizer
from lightning_unlearn.diffusion.canvas.folder import CanvasImage, Split, StyleObjectFolder
from lightning_unlearn.diffusion.canvas.names import CanvasNames
from lightning_unlearn.diffusion.data.captioned_images import pixels
from lightning_unlearn.diffusion.engine.text import tokenize

__all__ = ["CanvasImages", "CanvasTrainingDataModule", "opened"]


class CanvasImages(Dataset[dict[str, Any]]):
    """Images in [-1, 1] with the numbers of their style and object, and the tokens of their captions.

    Args:
        folder: The folder.
        images: Images of it.
        size: Side in pixels. Other images are resized so that their shorter side fits, and cropped at the centre.
        flip: Probability that an image is mirrored, drawn at each visit.
        tokenizer: A ``CLIPTokenizer`` for the captions; ``None`` for rows without them.
    """

    def __init__(
        self,
        folder: StyleObjectFolder,
        images: list[CanvasImage],
        size: int,
        flip: float = 0.0,
        tokenizer: Any = None,
    ) -> None:
        self.folder, self.images, self.size, self.flip = folder, images, size, flip
        pairs = list(dict.fromkeys(image[1:3] for image in images))
        self._pairs = {pair: number for number, pair in enumerate(pairs)}
        prompts = [folder.names.prompt(*pair) for pair in pairs]
        self._tokens = {} if tokenizer is None else tokenize(tokenizer, prompts)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, names = self.images[index], self.folder.names
        colours = pixels(image.path, self.size) * 2 - 1
        if self.flip and torch.rand(()) < self.flip:
            colours = colours.flip(2)
        pair = self._pairs[image.style, image.object]
        return {
            "pixel_values": colours,
            "style": names.all_styles.index(image.style),
            "object": names.objects.index(image.object),
            "index": index,
            **{column: tokens[pair] for column, tokens in self._tokens.items()},
        }


class CanvasTrainingDataModule(LightningDataModule):
    """All images of a style-object folder, to train judges or the text-to-image model that concepts are erased from.

    A batch has ``pixel_values`` ``(B, 3, size, size)`` in [-1, 1]; ``style`` and ``object`` ``(B,)``, the positions in
    ``names.all_styles`` and ``names.objects``; the ``index`` of each row; and with captions ``input_ids`` and
    ``attention_mask`` ``(B, L)``. How images are split into training, validation and test sets is defined by
    [`split_numbers`][lightning_unlearn.diffusion.canvas.folder.split_numbers].

    Args:
        folder: A folder as [`StyleObjectFolder`][lightning_unlearn.StyleObjectFolder] reads it.
        names: The styles and objects, ``"unlearncanvas"`` or ``"mini"`` or names of your own. A ``StyleObjectFolder``
            has its own.
        captions: Whether rows have the tokens of their prompts.
        size: Side in pixels.
        flip: Probability that a training image is mirrored.
        tokenizer: A ``CLIPTokenizer``, or the folder or hub id of one; by default the module's own.
        batch_size: Images in a batch, per process.
        num_workers: Processes that load images.

    Raises:
        FileNotFoundError: If images are missing.
        ValueError: If a number is out of range, or captions have no tokenizer.
    """

    def __init__(
        self,
        folder: StyleObjectFolder | str,
        names: CanvasNames | str = "unlearncanvas",
        captions: bool = False,
        size: int = 256,
        flip: float = 0.0,
        tokenizer: Any = None,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.folder, self.names, self.captions, self.tokenizer = folder, names, captions, tokenizer
        self.size, self.flip = at_least("size", size, 8), between("flip", flip, 0, 1)
        self.batch_size, self.num_workers = at_least("batch_size", batch_size, 1), num_workers
        self.sets: dict[str, CanvasImages] = {}
        """The images of each split."""

    def setup(self, stage: str) -> None:
        """List the images and tokenize the captions, once."""
        if self.sets:
            return
        folder = opened(self.folder, self.names)
        tokenizer = find_tokenizer(self.tokenizer, self.trainer, "CLIPTokenizer") if self.captions else None
        splits: tuple[Split, ...] = ("train", "val", "test")
        for split in splits:
            flip = self.flip if split == "train" else 0.0
            self.sets[split] = CanvasImages(folder, folder.items(split), self.size, flip, tokenizer)

    def train_dataloader(self) -> DataLoader:
        """Reshuffled passes; without the last images of a pass that do not fill a batch."""
        return self._loader("train", shuffle=True, drop_last=len(self.sets["train"]) > self.batch_size)

    def val_dataloader(self) -> dict[str, DataLoader]:
        """The validation images, as ``canvas``."""
        return {"canvas": self._loader("val")}

    def test_dataloader(self) -> dict[str, DataLoader]:
        """The test images, as ``canvas``."""
        return {"canvas": self._loader("test")}

    def _loader(self, split: str, **options: Any) -> DataLoader:
        return DataLoader(
            self.sets[split],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **options,
        )


def opened(folder: StyleObjectFolder | str, names: CanvasNames | str) -> StyleObjectFolder:
    """The folder itself, or the one at a path."""
    return folder if isinstance(folder, StyleObjectFolder) else StyleObjectFolder(folder, names)
