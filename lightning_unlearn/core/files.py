"""Atomic writes of files and folders, and file hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["give_usual_mode", "replacing", "sha256", "write_text"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file or a folder beside its place, and move it there when the body has ended without an error.

    A reader sees the old file or the whole new one, never a part of it, even after a crash, a full disk or a power cut.
    A folder replaces an older one of the same name.

    Args:
        path: Path of the file or folder; the parent folder is made.

    Returns:
        The path to write to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/a.txt") as part:
        ...         _ = part.write_text("whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")  # machines may share the folder
    _remove(part)
    try:
        yield part
        # Without it, a power cut can leave the new name on an empty file.
        for file in part.rglob("*") if part.is_dir() else [part]:
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        if part.is_dir() and path.exists():
            _remove(path)
        os.replace(part, path)
    finally:
        _remove(part)


def give_usual_mode(folder: str | os.PathLike[str]) -> None:
    """Give the weights in a folder the permissions of other new files: safetensors makes files for their owner alone.

    Args:
        folder: A folder that was written by this process.
    """
    mask = os.umask(0)
    os.umask(mask)
    for file in Path(folder).rglob("*.safetensors"):
        file.chmod(0o666 & ~mask)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in one step, see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def sha256(*paths: str | os.PathLike[str]) -> str:
    """Hash of the contents of some files, one after another, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
