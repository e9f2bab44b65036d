"""Runs of the UnlearnCanvas benchmark on the miniature: erasure, answer sets, attacks, families, pairs, sequences."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lightning_unlearn.benchmarks.beyond import draw_families, miniature_neighbours
from lightning_unlearn.benchmarks.canvas_methods import CanvasMethod
from lightning_unlearn.benchmarks.grid import Cell, Outcome
from lightning_unlearn.benchmarks.miniature import DRAW, attacked, erase
from lightning_unlearn.benchmarks.requests import PairAs, request
from lightning_unlearn.benchmarks.runs import build, quiet_libraries
from lightning_unlearn.core.files import replacing
from lightning_unlearn.core.memory import peak_memory
from lightning_unlearn.diffusion.canvas.answer_files import FEATURES_FILE, SCORES_FILE
from lightning_unlearn.diffusion.canvas.answers import sample_answers
from lightning_unlearn.diffusion.canvas.export import export_mini_canvas
from lightning_unlearn.diffusion.canvas.features import ImageFeatures, fid_retain, fid_vs_base
from lightning_unlearn.diffusion.canvas.judges import CanvasJudges
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS, CanvasNames
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.canvas.scoring import image_features, score_answers
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from lightning_unlearn.diffusion.text_to_image import LitTextToImage

__all__ = [
    "AnswerCell",
    "BaseCell",
    "ErasedCell",
    "FamilyCell",
    "PairCell",
    "SequenceCell",
    "base_answers",
    "base_families",
    "erased_answers",
    "pair_answers",
    "sequence_answers",
]

Target = str | tuple[str, str]
"""A style, an object, or a pair: a style and an object."""

_REFERENCE = "reference.safetensors"


@dataclass(frozen=True, kw_only=True)
class AnswerCell(Cell):
    """How answer sets are drawn; the hash is of the pipeline and its judges."""

    answer_seeds: tuple[int, ...]
    steps: int
    guidance: float
    keep_images: bool
    pipeline_sha256: str


@dataclass(frozen=True, kw_only=True)
class BaseCell(AnswerCell):
    """The answer set of the model before erasure."""


@dataclass(frozen=True, kw_only=True)
class FamilyCell(AnswerCell):
    """Families of prompts that ask for a concept, drawn by the model before erasure."""

    target: str
    names: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ErasedCell(FamilyCell):
    """A method that erases a concept, the number of attacked prompts, and the key of the base model's run."""

    method: CanvasMethod
    attacked: int
    families: bool
    base: str


@dataclass(frozen=True, kw_only=True)
class PairCell(AnswerCell):
    """A method that erases a style and an object together, and the number of images of the pair itself."""

    method: CanvasMethod
    style: str
    object: str
    names: int
    pair_as: PairAs
    pair_images: int


@dataclass(frozen=True, kw_only=True)
class SequenceCell(AnswerCell):
    """A method that erases one concept after another."""

    method: CanvasMethod
    targets: tuple[str, ...]
    names: int


def base_answers(cell: BaseCell, folder: Path) -> Outcome:
    """The answer set before erasure, features of it and of the data, and the neighbours of each concept."""
    base = _pipeline()
    place = f"answers/{cell.key}"
    _, features = _answer(base, cell, folder / place)
    features.write(folder / place / FEATURES_FILE)
    with TemporaryDirectory() as scratch:
        data = export_mini_canvas(Path(scratch, "data"), images=5, suffix=".png")
        of_data = image_features(data.items(), MINI_CANVAS, CanvasJudges.miniature().features, workers=1)
        of_data.write(folder / place / _REFERENCE)
    files = [f"{place}/{name}" for name in (SCORES_FILE, FEATURES_FILE, _REFERENCE)]
    targets = (*MINI_CANVAS.styles, *MINI_CANVAS.objects)
    neighbours = {target: asdict(miniature_neighbours(base, target)) for target in targets}
    return {"files": files, **_told(cell, place), "FID": fid_retain(features, of_data), "neighbours": neighbours}


def base_families(cell: FamilyCell, folder: Path) -> Outcome:
    """What families of prompts show before erasure."""
    return {"families": _families(_pipeline(), cell)}


def erased_answers(cell: ErasedCell, folder: Path) -> Outcome:
    """Erase a concept, draw the answer set and the families of prompts, and attack."""
    base, place = _pipeline(), f"answers/{cell.key}"
    with _unlearned(cell.method, [cell.target], cell.seed, cell.names, left_out=cell.left_out) as (module, cost):
        outcome = {"seed": cell.seed, **cost, "storage_bytes": _changed_bytes(module, base)}
        _, features = _answer(module, cell, folder / place)
        if cell.families:
            outcome["families"] = _families(module, cell)
        if cell.attacked:
            outcome["attack"] = attacked(module, base, cell.target, cell.seed, cell.attacked)
    of_base, of_data = (
        ImageFeatures.read(folder / "answers" / cell.base / name, MINI_CANVAS) for name in (FEATURES_FILE, _REFERENCE)
    )
    distances = {
        "FID": fid_retain(features, of_data, cell.target),
        "FID_base": fid_vs_base(features, of_base, cell.target),
    }
    return {"files": [f"{place}/{SCORES_FILE}"], **outcome, **distances, **_told(cell, place)}


def pair_answers(cell: PairCell, folder: Path) -> Outcome:
    """Erase a pair of a style and an object, and draw the answer set, with more images of the pair."""
    place, target = f"answers/{cell.key}", (cell.style, cell.object)
    with _unlearned(cell.method, [target], cell.seed, cell.names, pair_as=cell.pair_as) as (module, cost):
        _answer(module, cell, folder / place, target, cell.pair_images)
    return {"files": [f"{place}/{SCORES_FILE}"], "seed": cell.seed, **cost, **_told(cell, place)}


def sequence_answers(cell: SequenceCell, folder: Path) -> Outcome:
    """Erase concepts one after another, and draw the answer set after each."""
    places, costs, pipeline = [], [], None
    with TemporaryDirectory() as scratch:
        for step in range(len(cell.targets)):
            so_far, place = cell.targets[: step + 1], f"answers/{cell.key}/{step + 1}"
            with _unlearned(cell.method, so_far, cell.seed, cell.names, pipeline=pipeline) as (module, cost):
                _answer(module, cell, folder / place)
                if cell.method.guard is None:
                    pipeline = Path(scratch, str(step))
                    module.save_pretrained(pipeline)
            places.append(f"{place}/{SCORES_FILE}")
            costs.append(cost)
    return {"files": places, "seed": cell.seed, "targets": list(cell.targets), "scores": places, "steps": costs}


def _pipeline() -> LitTextToImage:
    quiet_libraries("transformers", "diffusers")
    return LitTextToImage(str(miniature_pipeline())).eval()


def _told(cell: AnswerCell, place: str) -> dict[str, Any]:
    """Where the verdicts of a model are, and its images."""
    return {"scores": f"{place}/{SCORES_FILE}"} | ({"answers": place} if cell.keep_images else {})


@contextmanager
def _unlearned(
    method: CanvasMethod,
    targets: Sequence[Target],
    seed: int,
    names: int,
    left_out: Sequence[str] = (),
    pair_as: PairAs = "one_concept",
    pipeline: Path | None = None,
) -> Iterator[tuple[LitTextToImage, dict[str, Any]]]:
    """A model without the last target, and what that cost; the targets before it are gone from the pipeline already."""
    quiet_libraries("transformers", "diffusers")
    if method.guard is None:
        module, cost = erase(method.eraser, targets[-1], seed, names, left_out, pair_as, pipeline, targets[:-1])  # type: ignore[arg-type]
        yield module, {**cost, "peak_memory_bytes": peak_memory("cpu")}
        return
    module = _pipeline()
    words = {word for target in targets for word in request(target, seed, names, left_out, pair_as).words}
    start = time.process_time()
    with ExitStack() as guards:
        for word in sorted(words):
            guards.enter_context(build([method.guard], module=module, concept=word)[0])
        cost = {"seconds": time.process_time() - start, "unet_rows": 0, "steps": 0}
        yield module, {**cost, "peak_memory_bytes": peak_memory("cpu")}


def _answer(
    module: LitTextToImage, cell: AnswerCell, place: Path, pair: tuple[str, str] | None = None, pair_images: int = 0
) -> tuple[AnswerScores, ImageFeatures]:
    """Draw and judge the answer set of a model; keep the verdicts, and the images where they are wanted."""
    judges = CanvasJudges.miniature()
    drawing: Any = {"steps": cell.steps, "guidance": cell.guidance, "batch_size": DRAW["batch_size"]}
    with replacing(place) as kept, TemporaryDirectory() as scratch:
        images = kept if cell.keep_images else Path(scratch)
        sample_answers(module, images, MINI_CANVAS, cell.answer_seeds, suffix=".png", part=(0, 1), **drawing)
        if pair is not None:
            alone = CanvasNames((pair[0],), (pair[1],), None, MINI_CANVAS.photo_word, MINI_CANVAS.template)
            further = (seed for seed in count(1) if seed not in cell.answer_seeds)
            seeds = [*cell.answer_seeds, *islice(further, max(0, pair_images - len(cell.answer_seeds)))]
            sample_answers(module, images, alone, seeds, photo=False, suffix=".png", part=(0, 1), **drawing)
        scores = score_answers(images, MINI_CANVAS, judges, features=judges.features, output=Path(scratch), workers=1)
        scores.write(kept / SCORES_FILE)
        return scores, ImageFeatures.read(Path(scratch, FEATURES_FILE), MINI_CANVAS)


def _families(module: LitTextToImage, cell: FamilyCell) -> dict[str, dict[str, list[int]]]:
    drawing = {"steps": cell.steps, "guidance": cell.guidance, "batch_size": DRAW["batch_size"]}
    return draw_families(module, cell.target, cell.names, cell.left_out, seeds=cell.answer_seeds, drawing=drawing)


def _changed_bytes(module: LitTextToImage, base: LitTextToImage) -> int:
    """Bytes of the weights that differ from the base's: what is to be kept of the model."""
    pairs = zip(module.parameters(), base.parameters(), strict=True)
    return sum(new.numel() * new.element_size() for new, old in pairs if not torch.equal(new, old))
