"""Content hashes of weights and of rows.

A safetensors file is read with ``json`` and ``struct`` alone; nothing that a file holds is run.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from lightning_unlearn.audit.canonical import canonical, writable
from lightning_unlearn.core.files import sha256
from lightning_unlearn.core.sources import is_missing

__all__ = ["ContentHash", "TensorHash", "content_hash", "header_hash", "row_leaf", "rows_root", "tied_copies"]

_INDEX = "model_index.json"
_PIECE = 4 << 20
_HEADER = 100_000_000
# Bits of an element, to see that a range is as long as the shape says.
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
_BITS |= {"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}


class TensorHash(NamedTuple):
    """Hash of one tensor with its name, type and shape.

    Args:
        name: Its name.
        dtype: Its type, as safetensors writes it.
        shape: Its shape.
        leaf: The hash, as hexadecimal digits.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    leaf: str


@dataclass(frozen=True)
class ContentHash:
    """Hash of the weights of a model.

    Args:
        root: The hash, as hexadecimal digits.
        kind: ``"tensors"`` of safetensors files, whatever shards, order and metadata they have; ``"files"`` of others,
            byte for byte.
        tensors: Hash of each tensor, sorted by name; none of ``"files"``.
    """

    root: str
    kind: str
    tensors: tuple[TensorHash, ...] = ()


class _Range(NamedTuple):
    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def content_hash(path: str | os.PathLike[str]) -> ContentHash:
    r"""Hash the weights of a model: the same for one file or several, and for any order of tensors and metadata.

    Each tensor has the leaf ``sha256("lu-tensor-v1\0" + canonical({dtype, name, shape}) + "\0" + bytes)``, and the
    model the root ``sha256("lu-model-v1\0" + number of tensors + leaves by name)``. The same numbers in another type
    are another model; so are other payloads of NaN, and -0 for 0.

    Args:
        path: Folder with ``.safetensors`` files, such a file, or folder of a pipeline, whose tensors are named by part,
            ``unet/...``. Of others, such as a pickled checkpoint, the bytes are hashed, and nothing is loaded.

    Raises:
        FileNotFoundError: If there is no such file, or no weights in the folder.
        ValueError: If a file is damaged, or two have a tensor of one name.
    """
    files, safe = _weight_files(Path(path))
    if not safe:
        digest = hashlib.sha256(b"lu-files-v1\0" + struct.pack("<Q", len(files)))
        for file in files:
            digest.update(bytes.fromhex(sha256(file)))
        return ContentHash(sha256(files[0]) if len(files) == 1 else digest.hexdigest(), "files")
    ranges = _all_ranges(Path(path), files)
    names: dict[str, Path] = {}
    for part in ranges:
        if part.name in names:
            raise ValueError(
                f"The tensor {part.name!r} is both in {names[part.name].name} and in {part.file.name}. A folder must "
                "hold one model: remove the files of the other."
            )
        names[part.name] = part.file
    ranges.sort(key=lambda part: part.name.encode())
    with ThreadPoolExecutor() as pool:  # hashing and reading release the lock
        leaves = list(pool.map(_leaf, ranges))
    digest = hashlib.sha256(b"lu-model-v1\0" + struct.pack("<Q", len(leaves)) + b"".join(leaves))
    tensors = (TensorHash(r.name, r.dtype, r.shape, leaf.hex()) for r, leaf in zip(ranges, leaves, strict=True))
    return ContentHash(digest.hexdigest(), "tensors", tuple(tensors))


def header_hash(file: str | os.PathLike[str]) -> str:
    """Hash of the header of a safetensors file, which holds its metadata and the places of its tensors."""
    with open(file, "rb") as opened:
        return hashlib.sha256(_header(opened, Path(file))).hexdigest()


def tied_copies(others: Sequence[TensorHash], path: str | os.PathLike[str]) -> dict[str, str]:
    """The tensors that only one of two models has by name, while the other has the same numbers under another name.

    Some writers leave out one of two names of the same weights.

    Args:
        others: Tensors of the other model.
        path: Folder or file of this model.

    Returns:
        For each such name, the name that both models have.
    """
    files, safe = _weight_files(Path(path))
    here = {part.name: part for part in _all_ranges(Path(path), files)} if safe else {}
    there, found = {tensor.name: tensor for tensor in others}, {}
    for name in there.keys() ^ here.keys():
        for common in there.keys() & here.keys():
            # The numbers of one name, hashed under the other, have the hash that the other model has for it.
            part, tensor = (here[common], there[name]) if name in there else (here[name], there[common])
            alike = (part.dtype, part.shape) == (tensor.dtype, tensor.shape)
            if alike and _leaf(part._replace(name=tensor.name)).hex() == tensor.leaf:
                found[name] = common
                break
    return found


def row_leaf(row: Any, secret: bytes) -> str:
    """Hash of a row under a secret, HMAC-SHA256, as hexadecimal digits.

    Without the secret, a short row or a name could be found by trying.

    Args:
        row: A text, or a mapping of columns.
        secret: 32 bytes.

    Raises:
        ValueError: If the secret is not of 32 bytes.
    """
    if len(secret) != 32:
        raise ValueError(f"The secret of rows must have 32 bytes, but this one has {len(secret)}.")
    return hmac.new(secret, canonical(_cells(row)), hashlib.sha256).hexdigest()


def _cells(row: Any) -> Any:
    """A row of any table as canonical JSON can hold it: missing cells are ``None``, days and the like their text."""
    if isinstance(row, Mapping):
        cells = {str(name): _cells(value) for name, value in row.items()}
        return cells if all(name.isascii() for name in cells) else [[name, cells[name]] for name in sorted(cells)]
    if isinstance(row, (list, tuple)):
        return [_cells(value) for value in row]
    if isinstance(row, str) or not is_missing(row):
        try:
            value = writable(row)
            canonical(value)
        except (TypeError, ValueError):
            return str(row)
        return value
    return None


def rows_root(rows: Iterable[Any], secret: bytes) -> str:
    r"""Hash of a set of rows under a secret, the same for any order of them.

    It is ``sha256("lu-row-v1\0" + number of rows + leaves in order)``, with `row_leaf` of each row. Destroying the
    secret makes a record of it free of the rows, while its chain stays valid.

    Args:
        rows: Texts, or mappings of columns.
        secret: 32 bytes of this request, kept beside the case file.

    Raises:
        ValueError: If there is no row, or the secret is not of 32 bytes.

    Example:
        >>> secret = bytes(32)
        >>> rows_root([{"question": "Who?"}, {"question": "When?"}], secret)[:16]
        '4156fbfd9fefd8c4'
    """
    leaves = sorted(bytes.fromhex(row_leaf(row, secret)) for row in rows)
    if not leaves:
        raise ValueError("There are no rows to hash.")
    return hashlib.sha256(b"lu-row-v1\0" + struct.pack("<Q", len(leaves)) + b"".join(leaves)).hexdigest()


def _weight_files(path: Path) -> tuple[list[Path], bool]:
    """The files with weights, and whether they are safetensors files."""
    if path.is_file():
        return [path], path.suffix == ".safetensors"
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {path} (looked in {Path.cwd()}).")
    for kinds in ((".safetensors",), (".bin", ".pt", ".pth", ".ckpt", ".gguf")):
        files = sorted(file for file in path.iterdir() if file.suffix in kinds and file.is_file())
        files = [file for file in files if file.name != "training_args.bin"]
        if files:
            return files, kinds == (".safetensors",)
    if (path / _INDEX).is_file():
        files = [file for part in _parts(path) for file in sorted((path / part).glob("*.safetensors"))]
        if files:
            return files, True
    raise FileNotFoundError(f"{path} has no weights: no .safetensors file, and none of another kind.")


def _parts(pipeline: Path) -> list[str]:
    """The folders of the parts of a pipeline of diffusers."""
    try:
        names = [name for name, kind in json.loads((pipeline / _INDEX).read_bytes()).items() if isinstance(kind, list)]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{pipeline / _INDEX} is damaged: {error}.") from None
    return sorted(name for name in names if Path(name).name == name and (pipeline / name).is_dir())


def _all_ranges(path: Path, files: Sequence[Path]) -> list[_Range]:
    """The tensors of all files of a model; those of a pipeline by part, and by variant such as ``fp16``."""
    ranges = []
    for file in files:
        variant = re.sub(r"-\d+-of-\d+$", "", file.stem).partition(".")[2]
        place = "" if path in (file, file.parent) else f"{'.'.join(filter(None, (file.parent.name, variant)))}/"
        ranges += [part._replace(name=place + part.name) for part in _ranges(file)]
    return ranges


def _header(opened: Any, file: Path) -> bytes:
    size = opened.read(8)
    length = struct.unpack("<Q", size)[0] if len(size) == 8 else 0
    if not 2 <= length <= _HEADER:
        raise ValueError(f"{file} is no safetensors file: its header says that it has {length:,} bytes.")
    header = opened.read(length)
    if len(header) < length:
        raise ValueError(f"{file} is cut off inside its header.")
    return bytes(header)


def _ranges(file: Path) -> list[_Range]:
    """The tensors of a file, with the bytes that each takes; together they take all of it, and none twice."""
    with file.open("rb") as opened:
        header = _header(opened, file)
    try:
        entries = _entries(header)
    except ValueError as error:
        raise ValueError(f"The header of {file} is damaged: {error}") from None
    start, found = 8 + len(header), []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), map(index, entry["data_offsets"])
            size = _size(dtype, shape)
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"The header of {file} is damaged: {name!r} is {entry!r}.") from None
        if size is not None and end - begin != size:
            raise ValueError(f"{file}: {name!r} of {dtype} {list(shape)} takes {end - begin} bytes, not {size}.")
        found.append(_Range(file, name, dtype, shape, start + begin, start + end))
    place = start
    for part in sorted(found, key=lambda part: (part.start, part.end)):
        if part.start != place or part.end < part.start:
            kind = "overlaps the tensor before it" if part.start < place else "leaves bytes before it unused"
            raise ValueError(f"{file}: {part.name!r} {kind}.")
        place = part.end
    if place != file.stat().st_size:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, but its header tells of {place:,}.")
    return found


def _entries(header: bytes) -> dict[str, Any]:
    """The header as a mapping; a repeated name is refused, since readers differ in which one they take."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(set(name for name, _ in items)) < len(items):
            raise ValueError("a name is there twice.")
        return dict(items)

    value = json.loads(header, object_pairs_hook=pairs)
    if not isinstance(value, Mapping):
        raise ValueError("it is no JSON object.")
    return dict(value)


def _size(dtype: str, shape: tuple[int, ...]) -> int | None:
    elements = 1
    for extent in shape:
        if not isinstance(extent, int) or extent < 0:
            raise ValueError
        elements *= extent
    return None if dtype not in _BITS else -(-elements * _BITS[dtype] // 8)


def _leaf(part: _Range) -> bytes:
    described = canonical({"dtype": part.dtype, "name": part.name, "shape": list(part.shape)})
    digest = hashlib.sha256(b"lu-tensor-v1\0" + described + b"\0")
    with part.file.open("rb", buffering=0) as opened:
        opened.seek(part.start)
        left = part.end - part.start
        while left:
            piece = opened.read(min(_PIECE, left))
            if not piece:
                raise ValueError(f"{part.file} was cut off while it was read.")
            digest.update(piece)
            left -= len(piece)
    return digest.digest()
