"""Comparison of a model with what a record holds of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_unlearn.audit.entries import base_hash, model_files
from lightning_unlearn.audit.hashes import TensorHash, content_hash, tied_copies

__all__ = ["BASE", "TIED", "compare_model"]

BASE = "base model missing"
TIED = "equal up to a tied copy"
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def compare_model(recorded: dict[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """Kind and description of every difference between a model and its record.

    The same tensors in other files, as other shards, are no difference; a changed header of a file is one.

    Args:
        recorded: What `model_entry` has made of the model.
        path: The model as it is now.
    """
    if not path.exists():
        yield "file missing", "there is no such file or folder"
        return
    try:
        content, files, base = content_hash(path), model_files(path), base_hash(path)
    except (OSError, ValueError) as error:
        yield "file damaged", str(error)
        return
    if recorded.get("base") not in (None, base):
        yield (BASE, "the local base model of the adapter") if base is None else ("base model changed", "other weights")
    same = content.root == recorded["content_hash"]
    found = [] if same or content.kind != "tensors" else list(_tensors(recorded, content.tensors, path))
    yield from found
    tied = bool(found) and all(kind == TIED for kind, _ in found)
    then, here = ({name: digest for name, _, digest in every} for every in (recorded["files"], files))
    shards = [{name for name in names if name.endswith(_WEIGHTS)} for names in (then, here)]
    skipped = shards[0] | shards[1] if tied or (same and shards[0] != shards[1]) else set()
    for name in sorted((then.keys() | here.keys()) - skipped):
        if name not in here:
            yield "file missing", name
        elif name not in then:
            yield "file added", name
        elif then[name] != here[name]:
            only = "header only, all tensors are the same" if same else "its header"
            yield "file changed", f"{name}: {only}" if name.endswith(".safetensors") else name


def _tensors(recorded: dict[str, Any], tensors: tuple[TensorHash, ...], path: Path) -> Iterator[tuple[str, str]]:
    then = {name: TensorHash(name, dtype, tuple(shape), leaf) for name, dtype, shape, leaf in recorded["tensors"]}
    here = {tensor.name: tensor for tensor in tensors}
    tied = tied_copies(list(then.values()), path)
    for name in sorted(then.keys() | here.keys()):
        if name in tied:
            yield TIED, f"{name} is in only one of the two, and {tied[name]} holds the same numbers"
        elif name not in here:
            yield "tensor missing", name
        elif name not in then:
            yield "tensor added", name
        elif then[name][:3] != here[name][:3]:
            of = f"{then[name].dtype} {list(then[name].shape)}"
            yield "tensor changed", f"{name} was {of}, and is {here[name].dtype} {list(here[name].shape)}"
        elif then[name] != here[name]:
            yield "tensor changed", f"{name}: different numbers"
