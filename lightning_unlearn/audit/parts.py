"""Finished parts of an audit in files, so that it can be killed and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lightning_unlearn.core.code import sources
from lightning_unlearn.core.distributed import gather_objects, rank
from lightning_unlearn.core.files import write_text

__all__ = ["PartKey", "Parts"]

_PLAN = "audit.json"
_SECRET = "rows.secret"


@dataclass(frozen=True)
class PartKey:
    """All that the outcome of a part depends on.

    Args:
        model: Hash of all that the model's answers depend on.
        rows: Keyed hash of the rows that are asked for.
        name: Name of the part, such as ``"int4"``.
        settings: Its settings, as JSON values.
        code: Hash of the source code that it uses.
    """

    model: str
    rows: str
    name: str
    settings: Mapping[str, Any]
    code: str

    @property
    def digest(self) -> str:
        """Name of the file: that of the part and a hash of all the rest.

        Example:
            >>> PartKey("a", "b", "int4", {"bits": 4}, "c").digest.partition("-")[0]
            'int4'
        """
        text = json.dumps(
            [self.model, self.rows, self.name, dict(self.settings), self.code], sort_keys=True, default=str
        )
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@cache
def code_hash(function: Any, classes: tuple[type, ...]) -> str:
    """Hash of the source code that a function and some classes use, without comments and docstrings."""
    paths = sorted({f"{kind.__module__}.{kind.__qualname__}" for kind in classes})
    return hashlib.sha256(json.dumps(sources(function, paths), sort_keys=True).encode()).hexdigest()[:16]


class Parts:
    """Outcomes of parts in ``<folder>/parts``, each in a file of its own.

    The first process reads and writes; every process gets the same outcome.

    Args:
        folder: The output folder of the audit.
        anchors: The output folder of another audit, whose parts serve as well. What it measured of the original and the
            control does not depend on the unlearned model.

    Raises:
        FileNotFoundError: If ``anchors`` is not the output of an audit.
    """

    def __init__(self, folder: str | os.PathLike[str], anchors: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder)
        self.anchors = None if anchors is None else Path(anchors).expanduser()
        if self.anchors is not None and not (self.anchors / _SECRET).is_file():
            raise FileNotFoundError(
                f"anchors={anchors} has no {_SECRET}: it is not the output folder of an audit (looked in {Path.cwd()})."
            )

    @property
    def claimed(self) -> bool:
        """Whether the folder is the output of an audit. A collective call."""
        return bool(gather_objects((self.folder / _PLAN).is_file())[0])

    @cached_property
    def secret(self) -> bytes:
        """The key that the rows of the audit are hashed under, kept in ``rows.secret``. A collective call.

        Raises:
            FileNotFoundError: If the folder has an audit, but its secret is gone.
        """
        path = self.folder / _SECRET
        if not path.is_file():
            if (self.folder / _PLAN).is_file():
                raise FileNotFoundError(
                    f"{self.folder} has an audit, but not {_SECRET}, which tells its rows from others. Put that file "
                    "back, or give another output_dir."
                )
            if rank() == 0:
                other = self.anchors / _SECRET if self.anchors is not None else None
                write_text(path, other.read_text(encoding="utf-8") if other else secrets.token_hex(32) + "\n")
                path.chmod(0o600)
        return bytes.fromhex(gather_objects(path.read_text(encoding="utf-8").strip() if rank() == 0 else None)[0])

    def claim(self, audited: Mapping[str, Any]) -> None:
        """Say what the folder is the audit of, so that another one does not mix with it.

        Raises:
            FileExistsError: If it is the output of an audit of something else.
        """
        path = self.folder / _PLAN
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if known is not None and known != dict(audited):
            differing = sorted(key for key in {*known, *audited} if known.get(key) != audited.get(key))
            raise FileExistsError(
                f"{self.folder} is the output of another audit: it differs in {', '.join(differing)}. Give another "
                "output_dir, or remove that one."
            )
        if known is None and rank() == 0:
            write_text(path, json.dumps(dict(audited), indent=2) + "\n")

    def get(self, key: PartKey) -> Any:
        """The outcome of a finished part, or ``None``. A collective call."""
        found: Any = None
        if rank() == 0:
            path = self._path(key)
            other = self.anchors / "parts" / path.name if self.anchors is not None else path
            if not path.is_file() and other.is_file():
                write_text(path, other.read_text(encoding="utf-8"))  # a folder has all that its report rests on
            found = json.loads(path.read_text(encoding="utf-8"))["outcome"] if path.is_file() else None
        return gather_objects(found)[0]

    def only(self, name: str, setting: str) -> Any:
        """The value of a setting that all finished parts of a name have; ``None`` without one. A collective call."""
        found: Any = None
        if rank() == 0:
            folders = [self.folder] + ([self.anchors] if self.anchors is not None else [])
            files = [file for folder in folders for file in (folder / "parts").glob(f"{name}-*.json")]
            values = {json.loads(file.read_text(encoding="utf-8"))["settings"].get(setting) for file in files}
            found = values.pop() if len(values) == 1 else None
        return gather_objects(found)[0]

    def put(self, key: PartKey, outcome: Any) -> None:
        """Keep the outcome of a part."""
        if rank() == 0:
            record = {"name": key.name, "model": key.model, "settings": dict(key.settings), "outcome": outcome}
            write_text(self._path(key), json.dumps(record, default=str) + "\n")

    def _path(self, key: PartKey) -> Path:
        return self.folder / "parts" / f"{key.digest}.json"
