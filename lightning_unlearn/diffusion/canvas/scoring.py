"""Scoring of answer sets: verdicts of two judges on each image of a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from lightning_unlearn.core.progress import progress
from lightning_unlearn.diffusion.canvas.answer_files import find_answers
from lightning_unlearn.diffusion.canvas.decoding import ImageBatches
from lightning_unlearn.diffusion.canvas.features import ImageFeatures
from lightning_unlearn.diffusion.canvas.folder import CanvasImage
from lightning_unlearn.diffusion.canvas.names import CanvasNames, names_of
from lightning_unlearn.diffusion.canvas.panel import Extractor, FeatureFunction, JudgePanel, Judges
from lightning_unlearn.diffusion.canvas.score_files import ScoreFiles
from lightning_unlearn.diffusion.canvas.scores import AnswerScores

__all__ = ["image_features", "score_answers"]

_SECONDS = 30.0
_LISTED = 10


def score_answers(
    folder: str | Path,
    names: CanvasNames | str,
    judges: Judges,
    seeds: Sequence[int] | None = None,
    size: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    features: Literal["judges"] | Extractor | None = None,
    output: str | Path | None = None,
) -> AnswerScores:
    """Judge the images of an answer set, made by `sample_answers` or by any other tool.

    No model is needed, only the images, named ``<style>_<object>_seed<number>``. They may be in sub-folders, and some
    may be missing. Threads decode them while the judges run, in batches of equal image size, and memory does not grow
    with the folder. If one network judges both style and object, an image passes through it once.

    The call writes ``scores.csv`` with a line per image, ``scores.json`` with the names of the judges, and
    ``features.safetensors`` if features are computed. The files are updated every half minute. After a kill, the same
    call continues; images that are newer than their scores are judged again.

    Judges run where their weights are, and under the autocast of the caller:
    ``with torch.autocast("cuda", torch.bfloat16): score_answers(...)``.

    Args:
        folder: The images.
        names: The styles and objects; or ``"unlearncanvas"`` or ``"mini"``.
        judges: [`CanvasJudges`][lightning_unlearn.CanvasJudges]; or a judge of the style and one of the object, whose
            classes are the names; or two functions of images that return positions in the names. They do their own
            preprocessing.
        seeds: The seeds that count; by default all that occur.
        size: Side in pixels of a square that images are resized to before they reach the judges; by default they are
            not resized. This saves memory if images are much larger than the judges' input, but changes what the
            judges see.
        batch_size: Images that are judged together.
        workers: Threads that decode; by default one per processor, 16 at most.
        features: Features for FID and KID: ``"judges"`` for the input of the judges' last layer, which costs no further
            pass, or a function such as [`InceptionFeatures`][lightning_unlearn.InceptionFeatures]. Read them with
            [`ImageFeatures.read`][lightning_unlearn.ImageFeatures].
        output: Folder for the files; by default that of the images.

    Returns:
        The verdicts.

    Raises:
        FileNotFoundError: If the folder has no image of an answer set.
        ValueError: If images have other names, occur twice or can't be read, the judges have other names, or the
            output has scores of other judges or settings. Images that can't be read are named at the end, when all
            others are scored.

    Example:
        ```python
        judges = CanvasJudges.from_pretrained("canvas-vit").to("cuda")
        scores = score_answers("answers/van_gogh", judges.names, judges, features="judges")
        features = ImageFeatures.read("answers/van_gogh/features.safetensors", judges.names)
        ```
    """
    names = names_of(names)
    answers = find_answers(folder, names, seeds)
    panel = JudgePanel(judges, names, features)
    store = ScoreFiles(
        folder=Path(folder if output is None else output),
        scores=AnswerScores.empty(names, answers.seeds if seeds is None else seeds),
        record={**panel.record, "size": size, "answers": answers.model},
        source=_source(panel.source, size),
    )
    todo = store.load(answers.files)
    batches = ImageBatches([answers.files[image] for image in todo], batch_size, workers, size)
    saved = time.monotonic()
    try:
        for places, images in progress(batches, "Scoring", math.ceil(len(todo) / batch_size)):
            store.add([todo[place] for place in places], *panel(images))
            if time.monotonic() - saved > _SECONDS:
                store.save()
                saved = time.monotonic()
    finally:
        store.save()
    _refuse_broken(batches)
    return store.scores


def image_features(
    images: Iterable[CanvasImage],
    names: CanvasNames | str,
    extractor: Extractor,
    size: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
) -> ImageFeatures:
    """Features of the images of a style-object grid, such as the data set that FID compares with.

    Args:
        images: Path, style, object and number of each, as `StyleObjectFolder.items` gives them.
        names: The styles and objects; or ``"unlearncanvas"`` or ``"mini"``.
        extractor: The same as for the answers.
        size: As for [`score_answers`][lightning_unlearn.score_answers].
        batch_size: Images that are passed together.
        workers: As there.

    Raises:
        ValueError: If images can't be read.

    Example:
        ```python
        data = StyleObjectFolder("UnlearnCanvas")
        reference = image_features(data.items(numbers=range(1, 6)), data.names, InceptionFeatures().to("cuda"))
        ```
    """
    files, function = list(images), FeatureFunction(extractor)
    batches = ImageBatches([file.path for file in files], batch_size, workers, size)
    parts = [
        ([files[place][1:] for place in places], function(pixels))
        for places, pixels in progress(batches, "Features", math.ceil(len(files) / batch_size))
    ]
    _refuse_broken(batches)
    return ImageFeatures.joined(names_of(names), _source(function.source, size) or "", parts)


def _source(source: str | None, size: int | None) -> str | None:
    return source if size is None or source is None else f"{source} at {size} pixels"


def _refuse_broken(batches: ImageBatches) -> None:
    if batches.broken:
        listed = "; ".join(f"{file}: {error}" for file, error in list(batches.broken.items())[:_LISTED])
        more = f"; and {len(batches.broken) - _LISTED} more" if len(batches.broken) > _LISTED else ""
        raise ValueError(
            f"{len(batches.broken)} images can't be read. Delete them and draw them again: {listed}{more}."
        )
