"""Commands that export checkpoints and apply weight deltas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.weights.delta import apply_delta, delta_info, revert_delta, save_delta

__all__ = ["apply", "export", "revert"]


def export(ckpt_path: str, output_dir: str | None = None, delta: str | None = None, base: str | None = None) -> None:
    """Write the model of a checkpoint as a folder, for ``AutoModelForCausalLM`` or ``StableDiffusionPipeline`` to open.

    Adapters are merged.

    Args:
        ckpt_path: Checkpoint of a run with LitCausalLM or LitTextToImage.
        output_dir: Folder to write.
        delta: File to write what the run changed to, for ``lightning-unlearn delta apply``; of language models.
        base: Folder, hub id or GGUF file of the model before the run; by default the one that the run started from.

    Raises:
        ValueError: If there is nothing to write, the checkpoint is a folder of shards, as FSDP2 writes it, or a delta
            is asked for of a diffusion model.
    """
    if output_dir is None and delta is None:
        raise ValueError("There is nothing to write. Give --output_dir for a folder, --delta for a delta, or both.")
    if base is not None and delta is None:
        raise ValueError(f"base={base!r} is what a delta is made against. Give --delta, the file to write, too.")
    if Path(ckpt_path).is_dir():
        raise ValueError(
            f"{ckpt_path} is a sharded checkpoint. Make one file of it first: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {ckpt_path}"
        )
    if any(key.startswith("unet.") for key in torch.load(ckpt_path, "meta", weights_only=True)["state_dict"]):
        if delta is not None or output_dir is None:
            raise ValueError("A delta is made of language models. Give --output_dir alone, for the whole pipeline.")
        LitTextToImage.load_from_checkpoint(ckpt_path, "cpu", weights_only=True).save_pretrained(output_dir)
        print(f"Wrote {output_dir}")
        return
    module = LitCausalLM.load_from_checkpoint(ckpt_path, "cpu", weights_only=True)
    with TemporaryDirectory() as scratch:
        folder = output_dir if output_dir is not None else f"{scratch}/export"
        module.save_pretrained(folder)
        if output_dir is not None:
            print(f"Wrote {output_dir}")
        if delta is None:
            return
        start = {name: module.hparams[name] for name in ("model", "revision", "dtype", "trust_remote_code")}
        after = {**start, "model": folder, "revision": None}
        before = start if base is None else {**start, "model": base, "revision": None}
        del module  # a model at a time in memory
        # Both as they are loaded: merged adapters write tied weights twice, and a base may be of another type.
        for side, options in (("before", before), ("after", after)):
            LitCausalLM(**options).save_pretrained(f"{scratch}/{side}")
        info = save_delta(f"{scratch}/before", f"{scratch}/after", delta)
    print(
        f"Wrote {delta}: {info.changed:,} of {info.weights:,} {info.dtype} weights changed ({info.density:.2%}), "
        f"{Path(delta).stat().st_size:,} bytes"
    )


def apply(model: str, delta: str, output: str) -> None:
    """Write the unlearned model: the base with a delta applied.

    Args:
        model: Folder, hub id or GGUF file of the base model.
        delta: File that ``lightning-unlearn export --delta`` wrote.
        output: Folder to write, which must not exist.
    """
    with _folder(model, delta) as folder:
        apply_delta(folder, delta, output)
    print(f"Wrote {output}")


def revert(model: str, delta: str, output: str) -> None:
    """Write the base model: the unlearned one with a delta taken back.

    Args:
        model: Folder of the unlearned model.
        delta: File that was applied.
        output: Folder to write, which must not exist.
    """
    revert_delta(model, delta, output)
    print(f"Wrote {output}")


@contextmanager
def _folder(model: str, delta: str) -> Iterator[str]:
    """A folder with the model's weights in the type that the delta is made for."""
    if Path(model).is_dir():
        yield model
        return
    with TemporaryDirectory() as scratch:
        dtype: Any = delta_info(delta).dtype
        LitCausalLM(model, dtype=dtype).save_pretrained(scratch)
        yield scratch
