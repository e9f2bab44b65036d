"""Files of verdicts and features that are written while an answer set is scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_unlearn.core.files import write_text
from lightning_unlearn.diffusion.canvas.answer_files import FEATURES_FILE, SCORES_FILE, SCORES_RECORD
from lightning_unlearn.diffusion.canvas.features import Image, ImageFeatures
from lightning_unlearn.diffusion.canvas.scores import AnswerScores

__all__ = ["ScoreFiles"]


class ScoreFiles:
    """Verdicts and features of an answer set, in memory and on disk.

    Args:
        folder: Where the files are.
        scores: Verdicts, filled in place.
        record: Everything that the verdicts depend on, other than the images.
        source: Identifies what computes the features; ``None`` without features.
    """

    def __init__(self, folder: Path, scores: AnswerScores, record: dict[str, Any], source: str | None) -> None:
        self.table, self.record_file = folder / SCORES_FILE, folder / SCORES_RECORD
        self.feature_file = folder / FEATURES_FILE
        self.scores, self.record, self.source = scores, record, source
        self._parts: list[tuple[Sequence[Image], Tensor]] = []
        self._changed = False

    def load(self, files: Mapping[Image, Path]) -> list[Image]:
        """Read earlier results, and give the images that have none, or are newer than theirs.

        Raises:
            ValueError: If they are of other judges or settings.
        """
        if not self.table.exists():
            return list(files)
        self._check()
        earlier = AnswerScores.read(self.table, self.scores.names)
        seen = {self._image(earlier, at) for at in earlier.seen.nonzero().tolist()}
        done = {image for image in files if image in seen and not _newer(files[image], self.table)}
        if self.source is not None:
            done &= self._load_features(files)
        elif seen - done:
            self.feature_file.unlink(missing_ok=True)  # of images that are others now
        for image in done:
            place, before = self._place(self.scores, image), self._place(earlier, image)
            self.scores.style[place], self.scores.object[place] = earlier.style[before], earlier.object[before]
        self._changed = done != seen
        return [image for image in files if image not in done]

    def add(self, images: Sequence[Image], styles: Tensor, objects: Tensor, features: Tensor | None) -> None:
        """Take over the verdicts ``(B,)`` and features ``(B, D)`` of a batch."""
        for image, style, object in zip(images, styles, objects, strict=True):
            place = self._place(self.scores, image)
            self.scores.style[place], self.scores.object[place] = style, object
        if features is not None:
            self._parts.append((images, features))
        self._changed = True

    def save(self) -> None:
        """Write what there is, if it is more than on disk."""
        if not self._changed:
            return
        if self.source is not None:  # before the table, which tells what is done
            features = ImageFeatures.joined(self.scores.names, self.source, self._parts)
            features.write(self.feature_file)
            self._parts = [(features.images, features.values)]
        write_text(self.record_file, json.dumps(self.record, indent=2) + "\n")
        self.scores.write(self.table)
        self._changed = False

    def _check(self) -> None:
        earlier = json.loads(self.record_file.read_text(encoding="utf-8")) if self.record_file.exists() else {}
        different = [key for key in {**self.record, **earlier} if earlier.get(key) != self.record.get(key)]
        if different:
            listed = ", ".join(f"{key} {earlier.get(key)!r}, not {self.record.get(key)!r}" for key in different)
            raise ValueError(
                f"{self.table} has scores of other judges, settings or answers: {listed}. Delete it, or pass another "
                "output folder."
            )

    def _load_features(self, files: Mapping[Image, Path]) -> set[Image]:
        """Images whose features are there."""
        if not self.feature_file.exists():
            return set()
        earlier = ImageFeatures.read(self.feature_file, self.scores.names)
        if earlier.source != self.source:
            return set()
        kept = earlier.of([i for i in earlier.images if i in files and not _newer(files[i], self.feature_file)])
        self._parts = [(kept.images, kept.values)]
        return set(kept.images)

    @staticmethod
    def _place(scores: AnswerScores, image: Image) -> tuple[int, int, int]:
        style, object, seed = image
        return scores.names.all_styles.index(style), scores.names.objects.index(object), scores.seeds.index(seed)

    @staticmethod
    def _image(scores: AnswerScores, place: Sequence[int]) -> Image:
        s, o, r = place
        return scores.names.all_styles[s], scores.names.objects[o], scores.seeds[r]


def _newer(file: Path, results: Path) -> bool:
    return file.stat().st_mtime > results.stat().st_mtime
