"""Command ``delta``: apply a weight delta to a base model, or revert it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.weights.delta import NOTE, apply_delta, delta_info, revert_delta

__all__ = ["apply", "revert"]


def apply(model: str, delta: str, output: str) -> None:
    """Write the unlearned model: the base model with a delta applied.

    Args:
        model: Folder, hub id or GGUF file of the base model.
        delta: File written by ``lightning-unlearn export --delta``.
        output: Folder to write, which must not exist.
    """
    with _folder(model, delta) as folder:
        apply_delta(folder, delta, output)
    print(f"Wrote {output}. {NOTE}")


def revert(model: str, delta: str, output: str) -> None:
    """Write the base model: the unlearned model with a delta removed.

    Args:
        model: Folder of the unlearned model.
        delta: File that was applied.
        output: Folder to write, which must not exist.
    """
    revert_delta(model, delta, output)
    print(f"Wrote {output}")


@contextmanager
def _folder(model: str, delta: str) -> Iterator[str]:
    """A folder with the model's weights in the type that the delta was made for."""
    if Path(model).is_dir():
        yield model
        return
    with TemporaryDirectory() as scratch:
        dtype: Any = delta_info(delta).dtype
        LitCausalLM(model, dtype=dtype).save_pretrained(scratch)
        yield scratch
