"""Commands ``canvas sample``, ``score`` and ``report`` for answer sets of UnlearnCanvas, drawn here or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_unlearn.benchmarks.canvas_folders import folder_results, write_distances
from lightning_unlearn.benchmarks.canvas_report import write_canvas_report
from lightning_unlearn.diffusion.canvas.answers import Suffix, sample_answers
from lightning_unlearn.diffusion.canvas.judges import CanvasJudges
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, names_of
from lightning_unlearn.diffusion.canvas.published_judges import published_judges
from lightning_unlearn.diffusion.canvas.scoring import score_answers
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from lightning_unlearn.diffusion.engine.pipeline import load_frozen
from lightning_unlearn.diffusion.judges import judge_named
from lightning_unlearn.diffusion.metrics.canvas_read_outs import canvas_read_out
from lightning_unlearn.diffusion.text_to_image import LitTextToImage

__all__ = ["report", "sample", "score"]

Names = Literal["unlearncanvas", "mini"]
Precision = Literal["32", "bf16", "16"]


def sample(
    output_dir: str,
    model: str | None = None,
    ckpt_path: str | None = None,
    names: Names = "unlearncanvas",
    seeds: Sequence[int] = ANSWER_SEEDS,
    steps: int = 100,
    guidance: float = 9.0,
    batch_size: int = 8,
    photo: bool = True,
    suffix: Suffix = ".jpg",
    sampler: Literal["ddim", "own"] = "ddim",
    part: tuple[int, int] | None = None,
    precision: Precision = "32",
    device: str | None = None,
) -> None:
    """Draw the answer set of a model: one image for each style, object and seed.

    Images that are already in the folder are not drawn again: if the command was killed, the same command continues.
    Several processes or machines can share a folder with ``--part``; under torchrun each process draws its own part.

    Args:
        output_dir: Folder of the images.
        model: Folder, hub id or single file of the pipeline; ``miniature`` is the one in the package.
        ckpt_path: Checkpoint of a run with LitTextToImage, in place of the pipeline.
        names: Styles and objects: those of the published benchmark, or of the miniature.
        seeds: Seeds of the images.
        steps: Number of sampler steps; 20 on the miniature.
        guidance: Weight of classifier-free guidance; 4 on the miniature.
        batch_size: Images drawn together.
        photo: Whether to draw unstyled photos, too.
        suffix: Format of the images.
        sampler: ``ddim``, or the pipeline's own.
        part: Which of how many parts to draw: ``[0, 4]`` is the first of four.
        precision: Precision in which images are drawn.
        device: Device, such as ``cuda:1``; by default a GPU if there is one, under torchrun that of the process.

    Raises:
        ValueError: If both or neither of ``model`` and ``ckpt_path`` are given, an argument is out of range, or the
            folder contains images of another model or with other settings.
    """
    if (model is None) == (ckpt_path is None):
        raise ValueError(f"Give one of model and ckpt_path, but got model={model!r} and ckpt_path={ckpt_path!r}.")
    where, part = device or _device(), part or _part()
    module: Any
    if model is not None:
        module = load_frozen(str(miniature_pipeline()) if model == "miniature" else model)
    else:
        module = LitTextToImage.load_from_checkpoint(str(ckpt_path), "cpu", weights_only=True).eval()
    module.to(where)
    drawing = (list(seeds), steps, guidance, batch_size, photo, suffix)
    with _autocast(where, precision):
        drawn = sample_answers(module, output_dir, names_of(names), *drawing, sampler=sampler, part=part)
    print(f"Drew {drawn} images into {output_dir}.")


def score(
    folder: str,
    judges: str | None = None,
    style_judge: str | None = None,
    object_judge: str | None = None,
    names: Names = "unlearncanvas",
    target: str | None = None,
    seeds: Sequence[int] | None = None,
    reference: str | None = None,
    size: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    precision: Precision = "32",
    device: str | None = None,
) -> None:
    """Judge the images of an answer set, drawn by ``canvas sample`` or by any other tool.

    Images are named ``<style>_<object>_seed<number>``. Writes ``scores.csv`` next to them, and prints UA, IRA and CRA.
    Images that have already been judged are not judged again.

    Args:
        folder: Folder of the images.
        judges: Folder of a classifier with two heads, as written by ``train_canvas_judges``; or ``miniature``.
        style_judge: Judge of the style, instead of ``judges``: the published checkpoint ``style50.pth``, or a folder or
            hub id of a classifier as for ``attack``.
        object_judge: Judge of the object, in the same form, such as ``style50_cls.pth``.
        names: Styles and objects: those of the published benchmark, or of the miniature.
        target: The style or object that the model has unlearned; by default the model is one before unlearning.
        seeds: Seeds to include; by default all that occur.
        reference: Folder of the data set, for FID and KID of the retained concepts: uses its images 1 to 5 of each
            style and object, and features of the judges. Writes ``distances.json``.
        size: Side in pixels that images are resized to before they are judged.
        batch_size: Images judged together.
        workers: Number of threads that decode images.
        precision: Precision in which the judges run.
        device: Device, such as ``cuda:1``; by default a GPU if there is one.

    Raises:
        ValueError: If the judges are given twice or not at all, images have other names or are missing, or the folder
            contains scores of other judges.
    """
    where = device or _device()
    panel = _judges(judges, style_judge, object_judge, names).to(where)
    reading: Any = {"seeds": seeds, "size": size, "batch_size": batch_size, "workers": workers}
    with _autocast(where, precision):
        features = None if reference is None else panel.features
        scores = score_answers(folder, panel.names, panel, features=features, **reading)
        if reference is not None:
            print(write_distances(folder, reference, panel, target, size, batch_size, workers))
    chosen = [target] if target is not None else [panel.names.styles[0], panel.names.objects[0]]
    for name in chosen:
        found = canvas_read_out(scores, name)
        shown = ", ".join(f"{key} {value:.2%} [{low:.2%}, {high:.2%}]" for key, (value, low, high) in found.items())
        print(f"{name}: {shown}" if target is not None else f"Before unlearning, if {name} were to go: {shown}")
    print(f"Wrote {folder}/scores.csv")


def report(root: str, output_dir: str | None = None, names: Names = "unlearncanvas") -> None:
    """Write the report on answer sets that ``canvas score`` has judged.

    The folders are ``<root>/<method>/<target>``, and ``<root>/None`` for the model before unlearning; those of one
    method with several seeds are ``<root>/<method>/<target>/<seed>``. Writes ``report.html``, ``report.md``,
    ``report.json``, ``summary.csv`` and ``matrices/``.

    Args:
        root: Folder of the answer sets.
        output_dir: Folder to write; by default the root.
        names: Styles and objects: those of the published benchmark, or of the miniature.

    Raises:
        FileNotFoundError: If a folder has no scores, or there are no folders.
        ValueError: If a folder's name is not a style or object, or a set lacks images.
    """
    where = Path(output_dir or root)
    where.mkdir(parents=True, exist_ok=True)  # paths in the record depend on it
    write_canvas_report(folder_results(root, names, where), where)
    print(f"Open {where}/report.html.")


def _judges(judges: str | None, style: str | None, object: str | None, names: Names) -> CanvasJudges:
    apart = style is not None and object is not None
    if (judges is None) != apart or (style is None) != (object is None):
        raise ValueError(
            f"Give judges, or both style_judge and object_judge, but got judges={judges!r}, style_judge={style!r} and "
            f"object_judge={object!r}."
        )
    if style is not None and object is not None:
        if Path(style).is_file() and Path(object).is_file():
            return published_judges(style, object, names_of(names))
        return CanvasJudges(judge_named(style), judge_named(object), names_of(names))
    if judges == "miniature":
        return CanvasJudges.miniature()
    return CanvasJudges.from_pretrained(str(judges), names_of(names))


def _device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _part() -> tuple[int, int]:
    """The share of a process under torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _autocast(device: str, precision: Precision) -> AbstractContextManager[Any]:
    types = {"bf16": torch.bfloat16, "16": torch.float16}
    return nullcontext() if precision == "32" else torch.autocast(torch.device(device).type, types[precision])
