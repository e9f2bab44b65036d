"""Command ``export``: a checkpoint's model as a folder, or the change made by the run as a delta."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lightning_unlearn.core.resume import recorded_class
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.weights.delta import NOTE, save_delta

__all__ = ["export"]


def export(
    ckpt_path: str,
    output_dir: str | None = None,
    delta: str | None = None,
    base: str | None = None,
    module: str | None = None,
) -> None:
    """Write the model of a checkpoint as a folder for ``AutoModelForCausalLM`` or ``StableDiffusionPipeline``.

    Adapters are merged.

    Args:
        ckpt_path: Checkpoint of a run with LitCausalLM or LitTextToImage.
        output_dir: Folder to write.
        delta: File to write the run's change to, for ``lightning-unlearn delta apply``; only for language models.
        base: Folder, hub id or GGUF file of the model before the run, if it was moved, or if the run started from a
            model object; by default the one that the checkpoint names.
        module: Import path of the module's class, if it is your own subclass of one of these two; by default the class
            that the checkpoint names.

    Raises:
        ValueError: If there is nothing to write, the checkpoint is a folder of shards, as written by FSDP2, or belongs
            to a module of another class, or a delta of a diffusion model is requested.
        FileExistsError: If the folder is not empty, or the delta exists.
    """
    if output_dir is None and delta is None:
        raise ValueError("There is nothing to write. Give --output_dir for a folder, --delta for a delta, or both.")
    for path in (output_dir, delta):
        if path is not None and (Path(path).is_file() or (Path(path).is_dir() and any(Path(path).iterdir()))):
            raise FileExistsError(
                f"{path} exists, and export does not write over files. Give a new name, or remove it first."
            )
    if Path(ckpt_path).is_dir():
        raise ValueError(
            f"{ckpt_path} is a sharded checkpoint. Make one file of it first: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {ckpt_path}"
        )
    kind = _module_class(ckpt_path, module)
    if issubclass(kind, LitTextToImage) and (delta is not None or output_dir is None):
        raise ValueError("A delta is made of language models. Give --output_dir alone, for the whole pipeline.")
    moved: dict[str, Any] = {"model": base, "revision": None} if base is not None else {}
    model = kind.load_from_checkpoint(ckpt_path, "cpu", weights_only=True, **moved)
    with TemporaryDirectory() as scratch:
        folder = output_dir if output_dir is not None else f"{scratch}/export"
        model.save_pretrained(folder)
        if output_dir is not None:
            print(f"Wrote {output_dir}")
        if delta is None:
            return
        start = {name: model.hparams[name] for name in ("model", "revision", "dtype", "trust_remote_code")}
        after = {**start, "model": folder, "revision": None}
        before = start if base is None else {**start, "model": base, "revision": None}
        del model  # keep one model in memory at a time
        # Both as they are loaded: merged adapters write tied weights twice, and a base may have another type.
        for side, options in (("before", before), ("after", after)):
            LitCausalLM(**options).save_pretrained(f"{scratch}/{side}")
        info = save_delta(f"{scratch}/before", f"{scratch}/after", delta)
    print(
        f"Wrote {delta}: {info.changed:,} of {info.weights:,} {info.dtype} weights changed ({info.density:.2%}), "
        f"{Path(delta).stat().st_size:,} bytes. {NOTE}"
    )


def _module_class(ckpt_path: str, module: str | None) -> type[LitCausalLM] | type[LitTextToImage]:
    """The class to load the checkpoint with: the given one, or the one that the checkpoint names if it is ours.

    No other class is imported merely because a checkpoint names it.
    """
    if module is not None:
        kind: Any = resolve_name(module)
        if not (isinstance(kind, type) and issubclass(kind, (LitCausalLM, LitTextToImage))):
            raise ValueError(f"module must be LitCausalLM, LitTextToImage or derived from one, but got {module!r}.")
        return kind
    try:
        checkpoint = torch.load(ckpt_path, "meta", weights_only=True)
    except (EOFError, RuntimeError):
        raise ValueError(
            f"{ckpt_path} is not a checkpoint, or a part of one: a run that ended on a full disk leaves a part."
        ) from None
    name = recorded_class(checkpoint)
    for known in (LitCausalLM, LitTextToImage):
        if name == f"{known.__module__}.{known.__qualname__}":
            return known
    weight = next(iter(checkpoint.get("state_dict", checkpoint)), None)
    raise ValueError(
        f"{ckpt_path} is of {name or f'a class that it does not name, with weights such as {weight!r}'}, but export "
        "writes models of LitCausalLM and LitTextToImage. Give --module, the import path of its class, if that is "
        "derived from one of these; if not, load the checkpoint with the class's own load_from_checkpoint."
    )
