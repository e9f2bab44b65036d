"""Data module that erases one style or object of a style-object folder."""

from __future__ import annotations

from typing import Any, Literal

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.pairing import Role
from lightning_unlearn.diffusion.canvas.data import opened
from lightning_unlearn.diffusion.canvas.folder import CanvasImage, StyleObjectFolder
from lightning_unlearn.diffusion.canvas.names import CanvasNames, names_of
from lightning_unlearn.diffusion.data.captioned_images import CaptionedImageDataModule
from lightning_unlearn.diffusion.data.prompts import PromptDataModule

__all__ = ["CanvasDataModule", "Retain", "Rows"]

Rows = Literal["images", "anchor_images", "prompts"]
Retain = Literal["photos", "others", "none"]


class CanvasDataModule(CaptionedImageDataModule):
    """Rows for erasing a style or an object of a style-object folder, as images or as prompts.

    Forget rows combine the target with every object (or style). The caption is the benchmark's prompt for the target,
    and the anchor is the same prompt for what replaces it. Batches are those of
    [`CaptionedImageDataModule`][lightning_unlearn.CaptionedImageDataModule], or without images those of
    [`PromptDataModule`][lightning_unlearn.PromptDataModule]. With the defaults, a style of UnlearnCanvas has 60 images
    to forget and an object 153, as in the published study. The 60 photos are retained, without those of the target.

    Args:
        target: Name of a style or an object.
        folder: A folder as [`StyleObjectFolder`][lightning_unlearn.StyleObjectFolder] reads it; prompts need none.
        rows: ``"images"`` of the target; ``"anchor_images"``, images of the anchor with captions that name the target,
            for [`ConceptAblation`][lightning_unlearn.ConceptAblation]; or ``"prompts"``, which include the target's
            name alone.
        anchor: Name of the style or object that the target is to become; by default the photos for a style, and the
            next object for an object.
        retain: ``"photos"``; ``"others"``, all styles with all objects but the target; or ``"none"``.
        images: Images of each style and object: those with the numbers 1, 2, ...
        names: The styles and objects, as for `CanvasTrainingDataModule`.
        size: Side in pixels that the model was made for.
        tokenizer: A ``CLIPTokenizer``, or the folder or hub id of one; by default the module's own.
        repeat: How often an epoch passes over prompts to forget.
        batch_size: Forget rows in a batch, per process.
        retain_batch_size: Retain rows in a batch, per process; by default as many.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling and pairing.
        num_workers: Processes that load images.

    Raises:
        FileNotFoundError: If images are missing.
        ValueError: If there is no such target or anchor, photos are to be used but there are none, images are asked for
            without a folder, or a number is out of range.

    Example:
        >>> data = CanvasDataModule("ring", rows="prompts", retain="others", names="mini")
        >>> rows = data.rows_of("forget")
        >>> rows[0], rows[-1]["prompt"], len(rows), len(data.rows_of("retain"))
        ({'prompt': 'ring', 'anchor': 'disk'}, 'a ring image in photo style', 7, 24)
    """

    def __init__(
        self,
        target: str,
        folder: StyleObjectFolder | str | None = None,
        rows: Rows = "images",
        anchor: str | None = None,
        retain: Retain = "photos",
        images: int = 3,
        names: CanvasNames | str = "unlearncanvas",
        size: int = 512,
        tokenizer: Any = None,
        repeat: int = 1,
        batch_size: int = 4,
        retain_batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            None,
            size=size,
            tokenizer=tokenizer,
            batch_size=batch_size,
            retain_batch_size=retain_batch_size,
            epoch=epoch,
            seed=seed,
            num_workers=num_workers,
        )
        self.repeat = at_least("repeat", repeat, 1)
        self.rows, self.retain = one_of("rows", rows, Rows), one_of("retain", retain, Retain)
        self.folder, self.images = folder, at_least("images", images, 1)
        self.names = folder.names if isinstance(folder, StyleObjectFolder) else names_of(names)
        self.target, self.kind = target, self.names.kind(target)
        if rows != "prompts" and folder is None:
            raise ValueError(f"rows={rows!r} are read from a folder, but there is none. Give one, or rows='prompts'.")
        if retain == "photos" and self.names.photo is None:
            raise ValueError("These names have no photos to retain. Give retain='others' or retain='none'.")
        self.anchor_name = self._default_anchor() if anchor is None else anchor
        alike = self.names.all_styles if self.kind == "style" else self.names.objects
        one_of("anchor", self.anchor_name, [name for name in alike if name != target])

    def setup(self, stage: str) -> None:
        """List the rows and tokenize their prompts, once."""
        if self.sets:
            return
        self.sources = {"forget": self.rows_of("forget")}
        if self.retain != "none":
            self.sources["retain"] = self.rows_of("retain")
        if self.rows == "prompts":
            PromptDataModule.setup(self, stage)
        else:
            super().setup(stage)

    def rows_of(self, role: Role) -> list[dict[str, Any]]:
        """The rows to forget, with ``anchor``, or to retain: each has ``prompt``, or ``image`` and ``caption``."""
        pairs = self._forgotten() if role == "forget" else self._retained()
        column = "prompt" if self.rows == "prompts" else "caption"
        rows = {
            pair: {column: self.names.prompt(*pair)}
            | ({"anchor": self.names.prompt(*self._anchored(pair))} if role == "forget" else {})
            for pair in pairs
        }
        if self.rows == "prompts":
            bare = {"prompt": self.names.word(self.target), "anchor": self.names.word(self.anchor_name)}
            return [*([bare] if role == "forget" else []), *rows.values()]
        # Where the images of a row are to be found.
        shown = {self._anchored(p) if role == "forget" and self.rows == "anchor_images" else p: p for p in pairs}
        return [{"image": i.path, **rows[shown[i[1:3]]]} for i in self._images() if i[1:3] in shown]

    def _images(self) -> list[CanvasImage]:
        folder = opened(self.folder, self.names)  # type: ignore[arg-type]
        if self.images > folder.images:
            raise ValueError(f"images={self.images}, but {folder.root} has {folder.images} of each pair.")
        return folder.items(numbers=range(1, self.images + 1))

    def _forgotten(self) -> list[tuple[str, str]]:
        return [pair for pair in self.names.pairs(photo=True) if self.target in pair]

    def _retained(self) -> list[tuple[str, str]]:
        pairs = [pair for pair in self.names.pairs(photo=True) if self.target not in pair]
        return [pair for pair in pairs if self.retain != "photos" or pair[0] == self.names.photo]

    def _anchored(self, pair: tuple[str, str]) -> tuple[str, str]:
        style, object = pair
        return (self.anchor_name, object) if self.kind == "style" else (style, self.anchor_name)

    def _default_anchor(self) -> str:
        if self.kind == "style" and self.names.photo is not None:
            return self.names.photo
        alike = self.names.of(self.kind)
        return alike[(alike.index(self.target) + 1) % len(alike)]
