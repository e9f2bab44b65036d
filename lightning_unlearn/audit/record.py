"""Record of an unlearning request: a chain of hashed and signed entries in a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_unlearn.audit.canonical import canonical, parsed, writable
from lightning_unlearn.audit.keys import key_id, signature
from lightning_unlearn.core.files import write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["FIRST", "SCHEMA", "AuditRecord", "Entry", "Head", "digests", "record_hash"]

SCHEMA = "lu-record/1"
FIRST = "0" * 64
"""Stands for the entry before the first one."""

_LONG = 64  # a longer list has one digest


class Head(NamedTuple):
    """The last entry of a record. Kept elsewhere, it shows that nothing was cut off.

    Args:
        seq: Its number.
        hash: Its hash.
    """

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


@dataclass(frozen=True)
class Entry:
    """One entry of a record, which is one line of its file.

    Args:
        body: What it says.
        prev: Hash of the entry before it.
        seq: Its number, from 0.
        schema: Version of the format.
        key_id: Id of the key that signed it; ``None`` where none did.
        signature: The signature, as hexadecimal digits.
    """

    body: dict[str, Any]
    prev: str
    seq: int
    schema: str = SCHEMA
    key_id: str | None = None
    signature: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What is hashed."""
        return {"body": self.body, "prev": self.prev, "schema": self.schema, "seq": self.seq}

    @property
    def hash(self) -> str:
        """Its hash."""
        return record_hash(self.record)

    def signed(self, key: Ed25519PrivateKey) -> Entry:
        """The same entry with a signature."""
        return replace(self, key_id=key_id(key.public_key()), signature=signature(key, self.hash))

    @property
    def line(self) -> bytes:
        """The entry as it stands in the file. Its digests, which are not hashed, tell which field was changed."""
        line: dict[str, Any] = {"digests": digests(self.record), "hash": self.hash, "record": self.record}
        if self.signature is not None:
            line["signature"] = {"key_id": self.key_id, "value": self.signature}
        return canonical(line)


def record_hash(record: Mapping[str, Any]) -> str:
    r"""Hash of an entry: ``sha256("lu-record-v1\0" + canonical(record))``, as hexadecimal digits.

    Example:
        >>> record_hash({"body": {"event": "request", "forget_rows": 2}, "prev": FIRST, "schema": SCHEMA, "seq": 0})[:8]
        '74894e6c'
    """
    return hashlib.sha256(b"lu-record-v1\0" + canonical(dict(record))).hexdigest()


class AuditRecord:
    """A record in a file of JSON lines, to which entries are appended.

    Each entry holds the hash of the one before it, so that none can be changed, removed or inserted without a trace; a
    signature says whose record it is. `verify_record` checks both, and the files that the record is about.

    Args:
        path: The file; it need not exist.

    Raises:
        ValueError: If the file is damaged: nothing is appended to a broken chain.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     record = AuditRecord(f"{folder}/record.jsonl")
        ...     head = record.append({"event": "request", "forget_rows": 2})
        ...     head.seq, record.entries[0].body["event"]
        (0, 'request')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.entries: list[Entry] = list(_read(self.path)) if self.path.exists() else []

    @property
    def head(self) -> Head:
        """The last entry."""
        if not self.entries:
            raise ValueError(f"The record {self.path} has no entry yet.")
        return Head(self.entries[-1].seq, self.entries[-1].hash)

    def append(
        self, body: Mapping[str, Any], key: Ed25519PrivateKey | None = None, now: datetime | None = None
    ) -> Head:
        """Write an entry at the end.

        Args:
            body: What it says, with the kind of it as ``event``. Measured numbers may be floats: they are written as
                decimal strings.
            key: Signs it.
            now: Time of the entry, ``recorded_at``; by default that of the clock.

        Raises:
            ValueError: If the body names no event, has what a record has no place for, or is earlier than the last
                entry.
        """
        if not isinstance(body.get("event"), str):
            raise ValueError(f"The body of an entry names its kind as 'event', but has the fields {sorted(body)}.")
        time = (now or datetime.now(timezone.utc)).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        content = writable({"recorded_at": time} | dict(body))
        before = [str(entry.body["recorded_at"]) for entry in self.entries if "recorded_at" in entry.body]
        if before and content["recorded_at"] < before[-1]:
            raise ValueError(f"The last entry is of {before[-1]}, and this one of {content['recorded_at']}, before it.")
        entry = Entry(content, self.entries[-1].hash if self.entries else FIRST, len(self.entries))
        self._write([*self.entries, entry if key is None else entry.signed(key)])
        return self.head

    def sign(self, key: Ed25519PrivateKey) -> int:
        """Sign the entries that have no signature.

        Args:
            key: The key.

        Returns:
            Number of the entries signed.
        """
        bare = sum(entry.signature is None for entry in self.entries)
        self._write([entry if entry.signature is not None else entry.signed(key) for entry in self.entries])
        return bare

    def latest(self, event: str) -> dict[str, Any] | None:
        """Body of the last entry of a kind; ``None`` where there is none."""
        return next((entry.body for entry in reversed(self.entries) if entry.body.get("event") == event), None)

    def _write(self, entries: list[Entry]) -> None:
        write_text(self.path, "".join(f"{entry.line.decode()}\n" for entry in entries))
        self.entries = entries


def digests(value: Any, path: str = "") -> dict[str, str]:
    """A short hash of every field, by its path; of a long list, one of all of it."""
    if isinstance(value, dict) and value:
        parts = {f"{path}.{key}" if path else key: part for key, part in value.items()}
    elif isinstance(value, list) and 0 < len(value) <= _LONG:
        parts = {f"{path}[{number}]": part for number, part in enumerate(value)}
    else:
        return {path: hashlib.sha256(canonical(value)).hexdigest()[:8]}
    return {name: digest for key, part in parts.items() for name, digest in digests(part, key).items()}


def _read(path: Path) -> Iterator[Entry]:
    prev = FIRST
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            parts = parsed(line)
            entry = Entry(**parts["record"])
            if "signature" in parts:
                entry = replace(entry, key_id=parts["signature"]["key_id"], signature=parts["signature"]["value"])
            sound = line == entry.line and (entry.seq, entry.prev, entry.schema) == (number, prev, SCHEMA)
        except (ValueError, TypeError, KeyError):
            sound = False
        if not sound:
            raise ValueError(
                f"Line {number + 1} of the record {path} is damaged, and nothing is appended to a broken chain. "
                f"`lightning-unlearn verify-record --record {path}` says what is wrong."
            )
        prev = entry.hash
        yield entry
