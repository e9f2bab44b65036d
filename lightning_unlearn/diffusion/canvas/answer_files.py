"""Files of an answer set, drawn by this package or by another tool."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.diffusion.canvas.answers import ANSWER_RECORD
from lightning_unlearn.diffusion.canvas.features import Image
from lightning_unlearn.diffusion.canvas.names import CanvasNames

__all__ = ["FEATURES_FILE", "SCORES_FILE", "SCORES_RECORD", "AnswerFiles", "find_answers"]

SCORES_FILE = "scores.csv"
SCORES_RECORD = "scores.json"
FEATURES_FILE = "features.safetensors"
"""Files that scoring writes into the folder of an answer set."""

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_OWN = {ANSWER_RECORD, SCORES_FILE, SCORES_RECORD, FEATURES_FILE}
_LISTED = 10


@dataclass(frozen=True)
class AnswerFiles:
    """The images of an answer set.

    Args:
        files: Path of each image by style, object and seed, in the order of the names.
        skipped: Files in the folder that are not images, or images of other seeds.
        model: Fingerprint of the model, if `sample_answers` drew them.
    """

    files: dict[Image, Path]
    skipped: tuple[Path, ...]
    model: str | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that occur, in order."""
        return tuple(sorted({seed for _, _, seed in self.files}))


def find_answers(folder: str | Path, names: CanvasNames, seeds: Sequence[int] | None = None) -> AnswerFiles:
    """Find the images of an answer set in a folder and its sub-folders.

    An image is named ``<style>_<object>_seed<number>``, with underscores for spaces, and is JPEG, PNG, WebP or BMP.
    Hidden folders are left out; a warning lists other files that are not images.

    Args:
        folder: The folder.
        names: The styles and objects.
        seeds: The seeds that count; by default all that occur.

    Raises:
        FileNotFoundError: If there is no such folder, or no image of an answer set in it.
        ValueError: If images have other names, or two files are of the same style, object and seed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {str(root)!r}; looked in {Path.cwd()}.")
    found: dict[Image, list[Path]] = {}
    skipped, unknown = [], []
    for file in _walk(root):
        if not _is_image(file):
            skipped.append(file)
            continue
        try:
            style, object, seed = names.parse(file)
        except ValueError:
            unknown.append(str(file.relative_to(root)))
            continue
        if seeds is None or seed in seeds:
            found.setdefault((style, object, seed), []).append(file)
        else:
            skipped.append(file)
    _refuse(root, found, unknown)
    if not found:
        of_seeds = "" if seeds is None else f" of the seeds {list(seeds)}"
        raise FileNotFoundError(
            f"{root} has no image{of_seeds} of an answer set. They are named <style>_<object>_seed<number>, such as "
            f"{names.file_name(names.styles[0], names.objects[0], 188)}."
        )
    strays = [str(file.relative_to(root)) for file in skipped if not _is_image(file) and file.name not in _OWN]
    if strays:
        rank_zero_warn(f"{len(strays)} files in {root} are skipped: {_some(strays)}.")
    ordered = sorted(found, key=lambda key: (names.all_styles.index(key[0]), names.objects.index(key[1]), key[2]))
    record = root / ANSWER_RECORD
    drawn_with = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    return AnswerFiles({key: found[key][0] for key in ordered}, tuple(skipped), drawn_with.get("model"))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _IMAGES and not file.name.startswith(".")


def _walk(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files))


def _refuse(root: Path, found: dict[Image, list[Path]], unknown: list[str]) -> None:
    if unknown:
        raise ValueError(
            f"{len(unknown)} images in {root} are not named <style>_<object>_seed<number> with a known style and "
            f"object: {_some(unknown)}. Rename them, move them elsewhere, or pass the names that they have."
        )
    twice = [" and ".join(str(f.relative_to(root)) for f in files) for files in found.values() if len(files) > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} images of {root} are there twice: {_some(twice)}. Delete one of each, or pass the folder of "
            "a single answer set."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
