"""Results of UnlearnCanvas from folders of judged answer sets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning_unlearn.core.files import write_text
from lightning_unlearn.diffusion.canvas.answer_files import FEATURES_FILE, SCORES_FILE
from lightning_unlearn.diffusion.canvas.features import ImageFeatures, fid_retain, kid_retain
from lightning_unlearn.diffusion.canvas.folder import StyleObjectFolder
from lightning_unlearn.diffusion.canvas.judges import CanvasJudges
from lightning_unlearn.diffusion.canvas.names import names_of
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.canvas.scoring import image_features
from lightning_unlearn.diffusion.metrics.canvas import BASE

__all__ = ["folder_results", "write_distances"]

_DISTANCES = "distances.json"
_KID_IMAGES = 1000


def write_distances(
    folder: str,
    reference: str,
    judges: CanvasJudges,
    target: str | None = None,
    size: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
) -> str:
    """FID and KID of a judged answer set to the data, by features of the judges, without the target on either side.

    Writes ``distances.json`` beside the scores, and ``reference.safetensors`` where features of the data were computed.

    Args:
        folder: The answer set, with features of the same judges.
        reference: Folder of the data set, or a ``reference.safetensors`` of an earlier call.
        judges: The judges.
        target: What was unlearned; ``None`` if nothing was.
        size: As for [`score_answers`][lightning_unlearn.score_answers].
        batch_size: As there.
        workers: As there.

    Returns:
        One line of text with both distances.
    """
    answers = ImageFeatures.read(Path(folder, FEATURES_FILE), judges.names)
    if reference.endswith(".safetensors"):
        data = ImageFeatures.read(reference, judges.names)
    else:
        images = StyleObjectFolder(reference, judges.names, incomplete=True).items(
            styles=judges.names.styles, numbers=range(1, 6)
        )
        data = image_features(images, judges.names, judges.features, size, batch_size, workers)
        data.write(Path(folder, "reference.safetensors"))
    removed = () if target is None else (target,)
    smaller = min(len(features.retained(removed).images) for features in (answers, data))
    kid, deviation = kid_retain(answers, data, removed, subset_size=min(_KID_IMAGES, smaller))
    found = {"FID": fid_retain(answers, data, removed), "KID": kid, "KID_deviation": deviation, "target": target}
    write_text(Path(folder, _DISTANCES), json.dumps(found, indent=2) + "\n")
    return f"FID {found['FID']:.2f}, KID {kid:.4f} ± {deviation:.4f} over subsets"


def folder_results(root: str | os.PathLike[str], benchmark: str, output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of judged answer sets, as ``bench_canvas`` gives it.

    Args:
        root: Folder with ``<method>/<target>`` and ``None``, the model before unlearning; runs of several seeds are
            ``<method>/<target>/<seed>``.
        benchmark: Name of the styles and objects.
        output_dir: What the paths in the record are relative to.

    Raises:
        FileNotFoundError: If a folder has no ``scores.csv``, or there is no method.
        ValueError: If the name of a folder is not a style or object.
    """
    top, names = Path(root), names_of(benchmark)
    methods: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for folder in _folders(top):
        if folder.name == BASE or (folder / SCORES_FILE).exists() or not _folders(folder):
            continue
        for inner in _folders(folder):
            names.kind(inner.name)
            numbered = [inner] if (inner / SCORES_FILE).exists() else _folders(inner) or [inner]
            runs = [{"seed": i, **_judged(run, output_dir)} for i, run in enumerate(numbered)]
            methods.setdefault(folder.name, {})[inner.name] = runs
    if not methods:
        raise FileNotFoundError(
            f"{top} has no answer set of a method. They are expected as {top}/<method>/<target>, such as "
            f"{top / 'ESD' / names.styles[0]}, each judged by `lightning-unlearn canvas score`."
        )
    base = _judged(top / BASE, output_dir)
    seeds = AnswerScores.read(top / BASE / SCORES_FILE, names).seeds
    return {"names": benchmark, "seeds": list(seeds), "base": base, "methods": methods}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _judged(folder: Path, output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """What is known of an answer set."""
    if not (folder / SCORES_FILE).exists():
        raise FileNotFoundError(
            f"{folder} has no {SCORES_FILE}. Judge its images first: lightning-unlearn canvas score --folder {folder} "
            "--judges ..."
        )
    place = os.path.relpath(folder, output_dir)
    told = {"scores": f"{place}/{SCORES_FILE}", "answers": place}
    if (folder / _DISTANCES).exists():
        told["FID"] = json.loads((folder / _DISTANCES).read_text(encoding="utf-8"))["FID"]
    return told
