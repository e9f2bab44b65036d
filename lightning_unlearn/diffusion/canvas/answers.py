"""Sampling of answer sets: an image of each style, object and seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least, between, finite, one_of
from lightning_unlearn.core.distributed import rank, world_size
from lightning_unlearn.core.files import replacing, write_text
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.progress import progress
from lightning_unlearn.diffusion.attacks.fingerprint import fingerprint
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, CanvasNames, names_of
from lightning_unlearn.diffusion.engine.pipeline import draw

__all__ = ["ANSWER_RECORD", "Suffix", "sample_answers"]

Suffix = Literal[".jpg", ".png"]

ANSWER_RECORD = "answers.json"
"""File in the folder of an answer set that tells the model and the settings."""


def sample_answers(
    module: Any,
    folder: str | Path,
    names: CanvasNames | str = "unlearncanvas",
    seeds: Sequence[int] = ANSWER_SEEDS,
    steps: int = 100,
    guidance: float = 9.0,
    batch_size: int = 8,
    photo: bool = True,
    suffix: Suffix = ".jpg",
    quality: int = 75,
    sampler: Literal["ddim", "own"] = "ddim",
    part: tuple[int, int] | None = None,
) -> int:
    """Draw the answer set of a model, ``<style>_<object>_seed<seed>.jpg`` for each style, object and seed.

    The noise of an image depends on its seed alone, so it is the same for all prompts and models, and images of two
    models can be compared pairwise. Images that exist in the folder are not drawn again, and each image is written
    atomically: after a kill, the same call continues. How prompts are batched changes images by rounding only.

    The defaults are those of the published protocol: 51 styles including the photos, 20 objects and 5 seeds make 5,100
    images of 100 DDIM steps. ``answers.json`` in the folder records the model and the settings.

    Args:
        module: A module with ``generate(prompts, seeds, steps=, guidance=)``, such as
            [`LitTextToImage`][lightning_unlearn.LitTextToImage], or a ``StableDiffusionPipeline``. Guards may be on it.
        folder: Where the images are written.
        names: The styles, the objects and the prompts; or ``"unlearncanvas"`` or ``"mini"``.
        seeds: Seeds of the noise. More of them can be added to a folder later.
        steps: Steps of the sampler.
        guidance: Weight of classifier-free guidance.
        batch_size: Images drawn together.
        photo: Whether the photos are drawn too.
        suffix: Format of the images. The published sets are JPEG, and FID is sensitive to its losses.
        quality: JPEG quality; the default is Pillow's, which the published scripts use.
        sampler: ``"ddim"``, which is deterministic, regardless of the pipeline's sampler; or ``"own"``, the pipeline's.
        part: The part to draw, ``(i, n)`` for part ``i`` of ``n`` with ``0 <= i < n``, for processes that share the
            work. By default each process of ``torch.distributed`` draws its own part.

    Returns:
        How many images this call has drawn.

    Raises:
        ValueError: If the folder has images of another model or other settings, an argument is out of range, an image
            has NaN, or a guard is on a sampler that ``"ddim"`` would replace.

    Example:
        ```python
        module = LitTextToImage("sd15-canvas-without-van-gogh").to("cuda")
        sample_answers(module, "answers/van_gogh", batch_size=32)
        ```

    References:
        Zhang et al., *UnlearnCanvas: Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion
        Models*, arXiv:2402.11846.
    """
    folder, names = Path(folder), names_of(names)
    at_least("steps", steps, 1)
    at_least("batch_size", batch_size, 1)
    between("quality", quality, 1, 100)
    one_of("suffix", suffix, Suffix)
    share, shares = (rank(), world_size()) if part is None else part
    between("part", share, 0, shares - 1, hint="it is (i, n) with 0 <= i < n")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"An answer set has an image of each seed, but the seeds are {list(seeds)}.")
    with _sampling(module, sampler):
        drawn_with = {"model": fingerprint(module), "steps": steps, "guidance": float(guidance), "sampler": sampler}
        saved_as = {"suffix": suffix, **({"quality": quality} if suffix == ".jpg" else {})}
        asked = {"template": names.template, "photo_word": names.photo_word}
        _claim(folder, {**drawn_with, **saved_as, **asked}, names)
        wanted = [(style, object, seed) for seed in seeds for style, object in names.pairs(photo)][share::shares]
        missing = [image for image in wanted if not (folder / names.file_name(*image, suffix)).exists()]
        batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
        for batch in progress(batches, f"Drawing {len(missing)} images into {folder.name}"):
            rows = [(names.prompt(style, object), seed, float(guidance)) for style, object, seed in batch]
            images = draw(module, rows, steps)
            finite("colours", images)
            for image, name in zip(images, batch, strict=True):
                _save(image, folder / names.file_name(*name, suffix), quality)
    return len(missing)


@contextmanager
def _sampling(module: Any, sampler: str) -> Iterator[None]:
    """In evaluation mode, by the sampler that is asked for."""
    with ExitStack() as stack:
        if isinstance(module, nn.Module):
            stack.enter_context(evaluating(module))
        owner = getattr(module, "pipeline", None) or module
        own = getattr(owner, "scheduler", None)
        if one_of("sampler", sampler, ("ddim", "own")) == "ddim" and own is not None:
            from diffusers import DDIMScheduler

            if not isinstance(own, DDIMScheduler):
                if any(callable(value) for value in vars(own).values()):
                    raise ValueError(
                        f"A guard is on the pipeline's {type(own).__name__}, which sampler='ddim' would replace. Set "
                        "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, "
                        "set_alpha_to_one=False) before the guard is on, or pass sampler='own'."
                    )
                # Latents are not in [-1, 1]; the other is how Stable Diffusion ends.
                owner.scheduler = DDIMScheduler.from_config(own.config, clip_sample=False, set_alpha_to_one=False)
                stack.callback(setattr, owner, "scheduler", own)
        yield


def _claim(folder: Path, record: dict[str, Any], names: CanvasNames) -> None:
    """Write the record of a new folder, or refuse a folder of another one."""
    path = folder / ANSWER_RECORD
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in {**record, **earlier} if earlier.get(key) != record.get(key)]
        if different:
            listed = ", ".join(f"{key} {earlier.get(key)!r}, not {record.get(key)!r}" for key in different)
            raise ValueError(
                f"{folder} has images of another model or other settings: {listed}. Draw into another folder, or "
                "delete this one."
            )
        return
    strangers = [file.name for file in sorted(folder.glob("*")) if _is_answer(file, names)]
    if strangers:
        raise ValueError(
            f"{folder} has {len(strangers)} images, such as {strangers[0]}, but no {ANSWER_RECORD} that tells their "
            "model. Draw into another folder, or delete them."
        )
    write_text(path, json.dumps(record, indent=2) + "\n")


def _is_answer(file: Path, names: CanvasNames) -> bool:
    try:
        return bool(names.parse(file))
    except ValueError:
        return False


def _save(image: Tensor, path: Path, quality: int) -> None:
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    options: dict[str, Any] = {"quality": quality} if path.suffix == ".jpg" else {}
    with replacing(path) as file:
        Image.fromarray(pixels.numpy()).save(file, format="JPEG" if path.suffix == ".jpg" else "PNG", **options)
