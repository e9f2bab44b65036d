"""Output folder of a request: which request it is of, and which steps are done."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import yaml

from lightning_unlearn.audit.canonical import writable
from lightning_unlearn.core.files import replacing, write_text

__all__ = ["PRIVATE", "RequestFolder", "configuration"]

PRIVATE = "private"
"""Sub-folder of an output folder for files that are not to be handed out."""

_STATE = "state.json"


def configuration() -> Path:
    """Folder of what is the user's own: the signing key, and the secrets of requests."""
    root = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(root).expanduser() / "lightning-unlearn"


class RequestFolder:
    """Output folder of a request.

    Every finished step is noted in ``state.json``, so that a request that was killed goes on where it was. Files of a
    step that is under way are in ``work/``, which holds the time before unlearning and is removed at the end. Files
    that stay but tell of the original model, such as logged metrics, are in ``private/``, which only the user may read.

    Args:
        path: The folder; it need not exist.

    Raises:
        ValueError: If its ``state.json`` is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().resolve()
        self.model, self.work = self.path / "model", self.path / "work"
        self.private = self.path / PRIVATE
        self.record, self.run = self.path / "record.jsonl", self.path / "run.yaml"
        self.checkpoint, self.final = self.work / "last.ckpt", self.work / "unlearned.ckpt"
        self._state: dict[str, Any] | None = None
        if (file := self.path / _STATE).is_file():
            try:
                self._state = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file} is damaged: {error}. Remove the folder, or give another one.") from None
        self.id: str = self._state["id"] if self._state is not None else secrets.token_hex(8)
        """Name of the request among those of the user."""
        self._new_secret = secrets.token_bytes(32)

    @property
    def secret_file(self) -> Path:
        """File of the secret of the rows. It is none of what is handed out, so it is in the user's configuration."""
        return configuration() / "rows" / f"{self.id}.secret"

    @property
    def secret(self) -> bytes:
        """The 32 bytes that rows are hashed under; `claim` writes those of a new folder.

        Raises:
            FileNotFoundError: If the folder has a request, but its secret is gone.
        """
        if self._state is None:
            return self._new_secret
        if not self.secret_file.is_file():
            raise FileNotFoundError(
                f"{self.path} has a request, but {self.secret_file} is gone, with which its rows are told from others. "
                "Put that file back, or give another --output_dir."
            )
        return bytes.fromhex(self.secret_file.read_text(encoding="utf-8").strip())

    def check_free(self) -> None:
        """Refuse a folder with files of no request; writes nothing.

        Raises:
            FileExistsError: If the folder has such files.
        """
        if self._state is not None:
            return
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise FileExistsError(
                f"{self.path} has files that are of no request. Give a new folder as --output_dir, or remove it."
            )

    def check(self, request: dict[str, Any]) -> None:
        """Refuse a folder of something else; writes nothing.

        Args:
            request: What the record will say of the request.

        Raises:
            FileExistsError: If the folder has another request, or files of something else.
        """
        self.check_free()
        if self._state is not None:
            given, known = _plain(request), self._state["request"]
            if differing := sorted(key for key in {*known, *given} if known.get(key) != given.get(key)):
                raise FileExistsError(
                    f"{self.path} is the folder of another request: it differs in {', '.join(differing)}. Give another "
                    "--output_dir, or remove that folder."
                )

    def claim(self, request: dict[str, Any]) -> None:
        """Write down which request the folder is of, and keep other processes out of it.

        Raises:
            FileExistsError: If the folder has something else, or another process works on its request.
        """
        self.check(request)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        if self._state is None:
            self._write_secret()
            self._write({"id": self.id, "request": _plain(request), "done": {}})
        self.private.mkdir(exist_ok=True, mode=0o700)

    def _write_secret(self) -> None:
        self.secret_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(self.secret_file) as part:
            part.touch(0o600)
            part.write_text(f"{self._new_secret.hex()}\n", encoding="utf-8")

    @property
    def claimed(self) -> bool:
        """Whether a request has begun here."""
        return self._state is not None

    def done(self, step: str) -> Any:
        """What was noted of a finished step; ``None`` if it is not finished."""
        return (self._state or {"done": {}})["done"].get(step)

    def finish(self, step: str, outcome: Any = True) -> None:
        """Note that a step is finished.

        Args:
            step: Its name.
            outcome: JSON value that later steps need of it.
        """
        assert self._state is not None
        self._write({**self._state, "done": {**self._state["done"], step: outcome}})

    def write_run(self, config: dict[str, Any]) -> None:
        """Write the configuration of the run."""
        command = f"# lightning-unlearn fit --config {self.run.name}\n"
        note = f"# The same run, bit for bit on the same machine. It writes {self.final.name} into this folder.\n"
        write_text(self.run, command + note + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def clear(self) -> None:
        """Remove the files of the steps: checkpoints and answers of the time before unlearning."""
        shutil.rmtree(self.work, ignore_errors=True)
        if self.work.exists():
            raise OSError(f"{self.work} holds the model before unlearning and can't be removed. Remove it yourself.")

    def _lock(self) -> None:
        """Lock the folder until the process ends, however it does; not on Windows, which has no such locks."""
        try:
            import fcntl
        except ImportError:
            return
        self._opened = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._opened)
            raise FileExistsError(
                f"Another process works on the request of {self.path}. Wait until it has ended, or end it."
            ) from None
        except OSError:
            pass  # a network file system without locks

    def release(self) -> None:
        """Let other processes into the folder."""
        if hasattr(self, "_opened"):
            os.close(self._opened)
            del self._opened

    def _write(self, state: dict[str, Any]) -> None:
        write_text(self.path / _STATE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")
        self._state = state


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """A body as it is read back."""
    plain: dict[str, Any] = json.loads(json.dumps(writable(value)))
    return plain
