r"""Weight deltas: small files that turn a base model into the unlearned one and back, bit for bit.

For every tensor that differs, the file holds the positions of the weights that moved and the XOR of their bits before
and after. XOR is its own inverse, so applying and reverting are the same exact operation with the same stored value:

$$\text{unlearned} = \text{base} \oplus \Delta, \qquad \text{base} = \text{unlearned} \oplus \Delta .$$

Positions are a bit for every weight of the tensor, or integer indices where these are smaller. A tensor of $n$
weights of $b$ bytes, $k$ of which moved, thus takes $kb + \min(\lceil n/8 \rceil, 4k)$ bytes; one that did not move
takes none.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.weights.copied_files import copy_settings

__all__ = ["DeltaInfo", "apply_delta", "delta_info", "revert_delta", "save_delta"]

Model = nn.Module | Mapping[str, Tensor] | str | Path
Side = Literal["base", "unlearned"]

_KEY, _FORMAT_VERSION = "lightning-unlearn-delta", 1
NOTE = (
    "With the unlearned model, this file gives the model from before unlearning back. Whoever may not have that must "
    "not have both."
)
"""What a delta says of itself in its metadata, and the commands that write or apply one say on the screen."""
_INDEX = "model.safetensors.index.json"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class DeltaInfo(NamedTuple):
    """What a delta says of itself.

    Args:
        base: SHA-256 of all tensors of the base model, with names, types and shapes, but not of the layout of files.
        unlearned: The same of the unlearned model.
        dtype: The type that most weights have.
        weights: Number of weights in the model, tied ones counted once.
        changed: Number of those that moved.
        density: ``changed / weights``, in (0, 1].
        library: The version of lightning-unlearn that wrote it.
    """

    base: str
    unlearned: str
    dtype: str
    weights: int
    changed: int
    density: float
    library: str


def save_delta(base: Model, unlearned: Model, path: str | Path) -> DeltaInfo:
    """Write the delta that turns one model into another.

    Folders are read one tensor at a time, so that for two models in folders only the delta is ever whole in memory.

    Args:
        base: The model before: a module, its state dict, or a Hugging Face folder with safetensors, sharded or not.
        unlearned: The model after, in any of these forms. Names, types and shapes must be those of the base.
        path: The ``.safetensors`` file to write.

    Returns:
        What the file says of itself.

    Raises:
        ValueError: If the models have different tensors, or no weight moved.

    Example:
        >>> import tempfile
        >>> base = {"weight": torch.tensor([1.0, 2.0, 3.0, 4.0])}
        >>> unlearned = {"weight": torch.tensor([1.0, 2.0, 0.0, 4.0])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_delta(base, unlearned, f"{folder}/delta.safetensors").density
        ...     apply_delta(base, f"{folder}/delta.safetensors")
        0.25
        >>> base["weight"]
        tensor([1., 2., 0., 4.])
    """
    path = Path(path)
    old, new = _tensors(base), _tensors(unlearned)
    old, new = _tensors(base, prefer=new), _tensors(unlearned, prefer=old)
    _check_same_tensors({name: _kind(tensor) for name, tensor in old.items()}, new, "the base", "the unlearned model")
    stored: dict[str, np.ndarray] = {}
    entries: dict[str, dict[str, str]] = {}
    sizes: Counter[str] = Counter()
    changed = 0
    for name in sorted(old):
        kind, before, after = _kind(old[name]), _bits(old[name]), _bits(new[name])
        entries[name] = {"kind": kind, "base": _digest(kind, before)}
        sizes[kind.split()[0]] += before.size
        xor = before ^ after
        moved = xor != 0
        if moved.any():
            entries[name]["unlearned"] = _digest(kind, after)
            stored[f"xor/{name}"] = xor[moved]
            changed += stored[f"xor/{name}"].size
            stored |= _positions(name, moved)
    if not changed:
        raise ValueError("The base and the unlearned model are the same bit for bit, so there is nothing to store.")
    info = DeltaInfo(
        base=_fingerprint(entries, "base"),
        unlearned=_fingerprint(entries, "unlearned"),
        dtype=sizes.most_common(1)[0][0],
        weights=sizes.total(),
        changed=changed,
        density=changed / sizes.total(),
        library=version("lightning-unlearn"),
    )
    # Under one key, since safetensors writes several in any order, and the same delta is to be the same file.
    said = {"format_version": _FORMAT_VERSION, "note": NOTE, "info": info._asdict(), "tensors": entries}
    metadata = {_KEY: json.dumps(said)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        written = Path(scratch) / path.name
        _safetensors().numpy.save_file(stored, written, metadata=metadata)
        written.replace(path)
    return info


def apply_delta(model: Model, path: str | Path, output: str | Path | None = None) -> None:
    """Turn the base model into the unlearned one.

    Nothing is written before all checks hold: every tensor is the base's, and every result will be the unlearned
    model's, by SHA-256.

    Args:
        model: A module or state dict, whose tensors are changed in place, or a Hugging Face folder, which is not.
        path: The file that [`save_delta`][lightning_unlearn.save_delta] wrote.
        output: Where the model is a folder, the new folder to write. It appears under this name when it is complete.
            Configuration, tokenizer, code and licence are copied, and nothing else.

    Raises:
        FileExistsError: If ``output`` exists.
        ValueError: If the model is not the base, the delta is applied already, or the file is damaged.
    """
    _flip(model, Path(path), output, start="base", end="unlearned")


def revert_delta(model: Model, path: str | Path, output: str | Path | None = None) -> None:
    """Turn the unlearned model back into the base, which undoes [`apply_delta`][lightning_unlearn.apply_delta].

    Args:
        model: The unlearned model, in any of the forms that ``apply_delta`` takes.
        path: The file that was applied.
        output: Where the model is a folder, the new folder to write.

    Raises:
        FileExistsError: If ``output`` exists.
        ValueError: If the model is not the unlearned one, the delta was never applied, or the file is damaged.
    """
    _flip(model, Path(path), output, start="unlearned", end="base")


def delta_info(path: str | Path) -> DeltaInfo:
    """What a delta says of itself.

    Args:
        path: The file that [`save_delta`][lightning_unlearn.save_delta] wrote.

    Raises:
        ValueError: If it is no such file.
    """
    return _Delta(Path(path)).info


class _Delta:
    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"There is no delta {path} (looked in {Path.cwd()}).")
        safetensors = _safetensors()
        self.path = path
        self._error = safetensors.SafetensorError
        try:
            self.file = safetensors.safe_open(path, framework="numpy")
        except self._error as error:
            raise ValueError(f"{path} is not a safetensors file, or a part of one: {error}.") from None
        metadata = self.file.metadata() or {}
        if _KEY not in metadata:
            raise ValueError(f"{path} is a safetensors file, but not a delta. Write one with save_delta.")
        said = json.loads(metadata[_KEY])
        self.info = DeltaInfo(**said["info"])
        if (found := said["format_version"]) != _FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {found}, but this library reads version {_FORMAT_VERSION}. "
                f"Install lightning-unlearn {self.info.library}, which wrote it."
            )
        self.entries: dict[str, dict[str, str]] = said["tensors"]
        self.changed = [name for name, entry in self.entries.items() if "unlearned" in entry]

    def side(self, tensors: Mapping[str, Tensor]) -> Side:
        """Whether the tensors are those of the base or of the unlearned model."""
        example: dict[Side, str] = {}
        for name, entry in self.entries.items():
            digest = _digest(entry["kind"], _bits(tensors[name]))
            if digest == entry["base"]:
                if "unlearned" in entry:
                    example["base"] = name
            elif digest == entry.get("unlearned"):
                example["unlearned"] = name
            else:
                raise ValueError(
                    f"{name} has SHA-256 {digest}, but {self.path} was made against a base in which it has "
                    f"{entry['base']}, so this is another model. Take the model with the fingerprint "
                    f"{self.info.base}, or make a delta for this one with save_delta."
                )
        if len(example) == 2:
            raise ValueError(
                f"{example['unlearned']} is that of the unlearned model, but {example['base']} that of the base: the "
                f"model is between the two. Load it again before applying or reverting {self.path}."
            )
        return next(iter(example))

    def flipped(self, name: str, bits: np.ndarray) -> np.ndarray:
        """The bits on the other side."""
        bits = bits.copy()
        try:
            if f"mask/{name}" in self.file.keys():  # noqa: SIM118  not a mapping
                where = np.unpackbits(self.file.get_tensor(f"mask/{name}"), count=bits.size).view(bool)
            else:
                where = self.file.get_tensor(f"index/{name}")
            bits[where] ^= self.file.get_tensor(f"xor/{name}")
        except (IndexError, TypeError, ValueError, self._error) as error:
            raise self.damaged(name) from error
        return bits

    def damaged(self, name: str) -> ValueError:
        return ValueError(f"{self.path} is damaged: it would make of {name} what was never saved. Get the file again.")


class _Folder(Mapping[str, Tensor]):
    """The tensors of a Hugging Face folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder} (looked in {Path.cwd()}).")
        self.folder = folder
        self.offsets: dict[str, tuple[Path, int]] = {}
        for file in _weight_files(folder):
            for name, offset in _offsets(file).items():
                if name in self.offsets:
                    raise ValueError(f"{name} is in both {self.offsets[name][0]} and {file}. Save the model again.")
                self.offsets[name] = (file, offset)

    def __getitem__(self, name: str) -> Tensor:
        with _safetensors().safe_open(self.offsets[name][0], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets)

    def write(self, output: Path, delta: _Delta) -> None:
        """Copy the folder with the delta's weights flipped; headers and the order of tensors stay."""
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
            copy = Path(scratch) / output.name
            own = {file.name for file, _ in self.offsets.values()}
            own |= {_INDEX} if "model.safetensors" not in own else set()
            left_out = copy_settings(self.folder, copy, own)
            for name in delta.changed:
                file, offset = self.offsets[name]
                with open(copy / file.name, "r+b") as target:
                    target.seek(offset)
                    target.write(delta.flipped(name, _bits(self[name])).data)
            copy.rename(output)
        if left_out:
            rank_zero_warn(
                f"{output} has the configuration, tokenizer, code and licence of {self.folder} beside its weights. Not "
                f"copied, since they may hold what was forgotten: {', '.join(left_out)}."
            )


def _flip(model: Model, path: Path, output: str | Path | None, start: Side, end: Side) -> None:
    delta = _Delta(path)
    tensors = _tensors(model, prefer=delta.entries)
    if isinstance(tensors, _Folder):
        target = _new_folder(tensors.folder, output)
    elif output is not None:
        raise ValueError(f"output={str(output)!r} is for folders; a {type(model).__name__} is changed in place.")
    kinds = {name: entry["kind"] for name, entry in delta.entries.items()}
    _check_same_tensors(kinds, tensors, str(path), "the model")
    if delta.side(tensors) != start:
        raise ValueError(
            f"{path} is applied to this model already; revert_delta takes it back."
            if start == "base"
            else f"{path} was never applied to this model: it is the base itself. apply_delta applies it."
        )
    for name in delta.changed:
        if _digest(kinds[name], delta.flipped(name, _bits(tensors[name]))) != delta.entries[name][end]:
            raise delta.damaged(name)
    if isinstance(tensors, _Folder):
        tensors.write(target, delta)
        return
    for name in delta.changed:
        tensor = tensors[name].detach()
        bits = torch.from_numpy(delta.flipped(name, _bits(tensor)))
        tensor.view(bits.dtype).copy_(bits.view(tensor.shape))


def _new_folder(folder: Path, output: str | Path | None) -> Path:
    if output is None:
        raise ValueError(f"{folder} is a folder, which stays as it is. Give output, the new folder to write.")
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists. Give a new folder as output, or remove this one first.")
    if folder.resolve() in output.resolve().parents:
        raise ValueError(f"output {output} is inside the model's own folder {folder}. Give one beside it.")
    return output


def _tensors(model: Model, prefer: Container[str] = ()) -> Mapping[str, Tensor]:
    """The tensors by name, of tied ones only the first, or the one whose name is preferred."""
    if isinstance(model, (str, Path)):
        return _Folder(Path(model))
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tied: dict[Any, list[str]] = {}
    for name, value in state.items():
        whole = isinstance(value, Tensor) and not isinstance(value, DTensor) and not value.is_meta
        if not whole or value.layout != torch.strided:
            raise TypeError(
                f"{name} is a {type(value).__name__}, but a delta is made of whole dense tensors in memory. Write the "
                "model with save_pretrained and give the folder."
            )
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else name
        tied.setdefault(place, []).append(name)
    return {next((n for n in names if n in prefer), names[0]): state[names[0]] for names in tied.values()}


def _check_same_tensors(kinds: Mapping[str, str], found: Mapping[str, Tensor], one: str, other: str) -> None:
    """Raise where names, types or shapes differ."""
    for here, there, having, lacking in ((kinds, found, one, other), (found, kinds, other, one)):
        missing = sorted(set(here) - set(there))
        if missing:
            raise ValueError(
                f"{missing[0]!r} is in {having}, but not in {lacking}, whose names are like "
                f"{min(there, default='')!r} ({len(missing)} of {len(here)} tensors are missing). Give both in the "
                "same form: folders written by save_pretrained, or the Hugging Face modules, LitCausalLM(...).model."
            )
    for name, kind in kinds.items():
        if _kind(found[name]) != kind:
            raise ValueError(
                f"{name!r} is {kind} in {one}, but {_kind(found[name])} in {other}. Take the same architecture, and "
                "load or save both with the same dtype, as by LitCausalLM(model, dtype=...).save_pretrained(folder)."
            )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _bits(tensor: Tensor) -> np.ndarray:
    """The bits of each weight as one integer, shape ``(n,)``."""
    if tensor.element_size() not in _INTEGERS:
        raise TypeError(f"A delta takes types of 1, 2, 4 or 8 bytes, but got {tensor.dtype}. Cast the tensor first.")
    return tensor.detach().cpu().contiguous().view(_INTEGERS[tensor.element_size()]).flatten().numpy()


def _digest(kind: str, bits: np.ndarray) -> str:
    digest = hashlib.sha256(f"{kind}\n".encode())
    digest.update(bits.data)
    return digest.hexdigest()


def _fingerprint(entries: Mapping[str, Mapping[str, str]], side: Side) -> str:
    lines = [f"{name} {entry.get(side, entry['base'])}\n" for name, entry in sorted(entries.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _positions(name: str, moved: np.ndarray) -> dict[str, np.ndarray]:
    integer = np.int32 if moved.size <= np.iinfo(np.int32).max else np.int64
    if np.count_nonzero(moved) * np.dtype(integer).itemsize < -(-moved.size // 8):
        return {f"index/{name}": np.flatnonzero(moved).astype(integer)}
    return {f"mask/{name}": np.packbits(moved)}


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load: one, or else the shards of the index."""
    whole, index = folder / "model.safetensors", folder / _INDEX
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json. Write the model with "
            "save_pretrained, or with LitCausalLM(...).save_pretrained for a GGUF file or a hub id."
        )
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise FileNotFoundError(f"{index} names the file {name!r}, which is not in the folder. Download it again.")
    return [folder / name for name in names]


def _offsets(file: Path) -> dict[str, int]:
    """Where in a safetensors file each tensor begins: 8 bytes of header length, the header in JSON, the tensors."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {name: 8 + length + tensor["data_offsets"][0] for name, tensor in header.items() if name != "__metadata__"}


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError('Deltas need safetensors: pip install "lightning-unlearn[llm]"') from None
    return safetensors
