"""Replies of an endpoint that are kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

__all__ = ["ReplyCache", "reply_key"]


def reply_key(request: Mapping[str, Any]) -> str:
    """A hash of all that a reply depends on.

    Example:
        >>> reply_key({"model": "a", "messages": []}) == reply_key({"messages": [], "model": "a"})
        True
    """
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies by the hash of their request, one a line of a file that only grows.

    A line is written as soon as a reply is there, so a run that was killed goes on where it was; half a line that a
    kill has left does not count.

    Args:
        path: The file; ``None`` to keep replies for the life of the object.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path).expanduser() if path is not None else None
        self._lock = Lock()
        self._replies: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            self._replies = dict(filter(None, map(_read, self.path.read_text(encoding="utf-8").splitlines())))

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Any:
        """The reply to a request, ``None`` if there is none."""
        return self._replies.get(key)

    def put(self, key: str, reply: Any) -> None:
        """Keep a reply that JSON can hold."""
        with self._lock:
            self._replies[key] = reply
            if self.path is None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                line = json.dumps({"key": key, "reply": reply}, ensure_ascii=False)
                file.write(f"{_gap(file)}{line}\n".encode())


def _gap(file: Any) -> str:
    """A line break, where a kill has left half a line."""
    if file.tell() == 0:
        return ""
    file.seek(-1, os.SEEK_END)
    return "" if file.read(1) == b"\n" else "\n"


def _read(line: str) -> tuple[str, Any] | None:
    try:
        row = json.loads(line)
        return row["key"], row["reply"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
