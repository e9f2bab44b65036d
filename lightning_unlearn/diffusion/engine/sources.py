"""Pipelines from folders, hub ids and single files, with errors that name what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_unlearn.diffusion.engine.folders import SafetyChecker

__all__ = ["is_single_file", "open_file", "open_folder"]

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_PARTS = ("unet", "text_encoder", "vae")
# Names of weights that tell the kind of a single file, the first that occurs.
_KINDS = (
    ("a LoRA: load it into its pipeline, fuse it and save the pipeline", ("lora_", ".lora_A", ".lora_down", ".lora.")),
    ("Stable Diffusion XL", ("conditioner.embedders.",)),
    ("Stable Diffusion 3", ("joint_blocks.",)),
    ("Flux", ("double_blocks.", "single_transformer_blocks.")),
)
_UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
_OPTIONS: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}


def is_single_file(model: str) -> bool:
    """Whether a model is a file and no folder.

    Raises:
        ValueError: If it is a file of pickled weights.
        FileNotFoundError: If it does not exist.
    """
    path = Path(model)
    if path.suffix.lower() in _PICKLES and not path.is_dir():
        raise ValueError(
            f"{model} is a file of pickled weights, which can run code when it is opened; weights are read from "
            "safetensors files only. If you trust it, convert it once: StableDiffusionPipeline.from_single_file"
            f"({model!r}).save_pretrained('converted'), and open 'converted'. A checkpoint of a run opens with "
            "LitTextToImage.load_from_checkpoint."
        )
    if path.suffix.lower() != ".safetensors" or path.is_dir():
        return False
    if not path.is_file() and "://" not in model:
        raise FileNotFoundError(f"There is no file {model} (looked in {Path.cwd()}).")
    return True


def open_file(model: str, config: str | None) -> Any:
    """The pipeline of a single file in the original layout.

    Args:
        model: The file.
        config: Folder or hub id of a pipeline of the same architecture, for the settings and the tokenizer; by default
            diffusers looks one up on the hub.

    Raises:
        TypeError: If it is of another architecture.
        ValueError: If it is no such file, or there is no such pipeline.
    """
    from diffusers import StableDiffusionPipeline

    if "://" not in model:
        _check_file(model)
    if config is not None:
        _check_kind(config, None)
    try:
        return StableDiffusionPipeline.from_single_file(model, config=config, **_OPTIONS)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{model} does not open: {_first_line(error)} A single file has neither settings nor a tokenizer. Give "
            "config=, the folder or hub id of a pipeline of the same architecture, such as "
            f"'stable-diffusion-v1-5/stable-diffusion-v1-5'; it is {config!r}."
        ) from error


def open_folder(model: str, revision: str | None, variant: str | None) -> tuple[Any, SafetyChecker | None]:
    """The pipeline of a folder or hub id, and the safety checker that it has.

    Raises:
        TypeError: If it is of another architecture.
        ValueError: If its weights are in other files than those that are read.
        FileNotFoundError: If there is no such folder.
    """
    from diffusers import StableDiffusionPipeline

    index = _check_kind(model, revision)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            model, revision=revision, variant=variant, use_safetensors=True, **_OPTIONS
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model} does not open with variant={variant!r}: {_first_line(error)}{_way_out(model, variant)}"
        ) from error
    _check_weights(pipeline.text_encoder, Path(model) / "text_encoder", variant)
    return pipeline, SafetyChecker.of(model, index)


def _check_kind(model: str, revision: str | None) -> dict[str, Any]:
    """The index of a pipeline, if that is a ``StableDiffusionPipeline``."""
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    path = Path(model)
    if path.is_dir() and not (path / "model_index.json").is_file():
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
        raise FileNotFoundError(
            f"{model} has no model_index.json, so it is no folder of a pipeline; it has {found or 'nothing'}. Pass the "
            "folder that StableDiffusionPipeline.save_pretrained wrote, not one of its parts."
        )
    if not path.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise FileNotFoundError(f"There is no folder {model} (looked in {Path.cwd()}).")
    index = DiffusionPipeline.load_config(model, revision=revision)
    if index["_class_name"] != StableDiffusionPipeline.__name__:
        raise TypeError(
            f"{model} is a {index['_class_name']}, but a StableDiffusionPipeline (Stable Diffusion 1.x or 2.x) is "
            "supported."
        )
    return dict(index)


def _check_file(model: str) -> None:
    """Refuse a file that holds no whole Stable Diffusion 1.x or 2.x."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(model, "pt") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{model} is no safetensors file: {error}. It may be cut short; load it again.") from None
    kind = next((kind for kind, signs in _KINDS if any(sign in name for name in names for sign in signs)), None)
    if kind is not None:
        raise TypeError(f"{model} is of {kind}. A whole Stable Diffusion 1.x or 2.x is supported.")
    missing = [prefix for prefix in (_UNET, _VAE, _TEXT) if not any(name.startswith(prefix) for name in names)]
    if missing:
        raise TypeError(
            f"{model} has no weights named {', '.join(f'{prefix}*' for prefix in missing)}, but such as "
            f"{min(names, default='none')}, so it is no whole Stable Diffusion in the original layout: UNet, "
            "autoencoder and text encoder."
        )


def _check_weights(encoder: Any, folder: Path, variant: str | None) -> None:
    """Refuse a text encoder that is left at random because its file has other names.

    transformers only logs that.
    """
    from safetensors import safe_open

    files = sorted(folder.glob(f"model.{variant}*.safetensors" if variant else "model*.safetensors"))
    if variant and not files:  # the rest of a variant's folder may have plain names
        files = sorted(folder.glob("model*.safetensors"))
    names: set[str] = set()
    for path in files:
        with safe_open(path, "pt") as file:
            names |= {name.removeprefix("text_model.") for name in file.keys()}  # noqa: SIM118
    missing = sorted({name.removeprefix("text_model.") for name in encoder.state_dict()} - names)
    if files and missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of the text encoder, such as {missing[0]}, which would be random. "
            "Save the pipeline anew with the version of transformers that opens it."
        )


def _way_out(model: str, variant: str | None) -> str:
    """What to do about a local folder that does not open."""
    found = {part: sorted(p.name for p in Path(model, part).glob("*")) for part in _PARTS}
    stems = {
        name.removesuffix(".safetensors") for names in found.values() for name in names if name.endswith(".safetensors")
    }
    variants = sorted({stem.split(".", 1)[1] for stem in stems if "." in stem and "-of-" not in stem})
    pickled = [name for names in found.values() for name in names if name.endswith(".bin")]
    if variants and variant not in variants:
        return f" The folder has the variant {variants[0]!r}: pass variant={variants[0]!r}."
    if variant is not None and stems and not variants:
        return f" The folder has no file of a variant: leave variant={variant!r} out."
    if pickled:
        return (
            f" The folder has {pickled[0]}, a file of pickled weights, but weights are read from safetensors files "
            "only. If you trust it, convert it once: "
            f"StableDiffusionPipeline.from_pretrained({model!r}, use_safetensors=False)"
            ".save_pretrained('converted'), and open 'converted'."
        )
    if Path(model).is_dir():
        return f" Its parts have {json.dumps(found)}."
    return (
        " If its weights are in files of a variant, pass variant='fp16'; weights are read from safetensors files only: "
        "convert a .bin once with from_pretrained(..., use_safetensors=False).save_pretrained('converted')."
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0].rstrip(".") if lines else type(error).__name__) + "."
