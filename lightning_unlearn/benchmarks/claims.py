"""Claims on the runs of a folder that several processes or machines share."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any
from uuid import uuid4

__all__ = ["Claims"]


class Claims:
    """The claims of this process. Inside the context, a thread renews them; at its end, all are released.

    A claim is a file that only one process can create. It contains the host, the process and the time, and its
    modification time is the heartbeat. A claim is stale if its process no longer runs on this machine, or if it had no
    heartbeat for a while, by the clock of the file system. Another process may then take it over. A process that lost
    its claim in this way, because it was suspended for long, continues; both processes compute the same result.

    Args:
        folder: Where the files are.
        beat: Seconds between two heartbeats.
        stale_after: Seconds without a heartbeat after which a claim is stale. Network file systems may show a change
            only after a minute.
    """

    def __init__(self, folder: Path, beat: float = 15.0, stale_after: float = 300.0) -> None:
        self.folder, self.beat, self.stale_after = folder, beat, stale_after
        self._held: dict[str, str] = {}
        self._ended = Event()

    def __enter__(self) -> Claims:
        self._ended.clear()
        self._thread = Thread(target=self._keep_fresh, name="claims", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.release(list(self._held))

    def take(self, key: str) -> bool:
        """Claim a run; ``False`` if another process has a fresh claim on it."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _signature()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            known = _read(path)
            if known is None or not self._is_stale(*known) or not self._replace(path, known[0], text):
                return False
        self._held[key] = text
        return True

    def release(self, keys: Iterable[str]) -> None:
        """Give up claims of this process."""
        for key in keys:
            text, path = self._held.pop(key, None), self._path(key)
            if text is not None:
                self._replace(path, text, None)

    def owner(self, key: str) -> str | None:
        """Who has a fresh claim on a run, as ``"process 12 on node3"``."""
        known = _read(self._path(key))
        if known is None or self._is_stale(*known):
            return None
        claim = _parsed(known[0])
        return f"process {claim.get('process', '?')} on {claim.get('host', 'an unknown host')}"

    def _replace(self, path: Path, old: str, new: str | None) -> bool:
        """Replace or remove a claim that still reads ``old``; of several processes that try so, one succeeds.

        Only the process that creates the marker of this text may touch the claim, so between its reading and its
        replacing nobody else can. A marker stays if its process is killed at that point; it expires as a claim does.
        """
        marker = path.with_name(f".{path.name}.{hashlib.sha256(old.encode()).hexdigest()[:16]}.ending")
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            with suppress(FileNotFoundError):
                if self._now() - marker.stat().st_mtime > self.stale_after:
                    marker.unlink()
            return False
        try:
            known = _read(path)
            if known is None or known[0] != old:
                return False
            if new is None:
                path.unlink()
            else:
                beside = path.with_name(f".{path.name}.{uuid4().hex}.new")
                beside.write_text(new, encoding="utf-8")
                beside.replace(path)
            return True
        finally:
            marker.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _keep_fresh(self) -> None:
        while not self._ended.wait(self.beat):
            for key, text in list(self._held.items()):
                with suppress(OSError):  # a network file system may be away for a moment
                    known = _read(self._path(key))
                    if known is not None and known[0] == text:
                        os.utime(self._path(key))

    def _is_stale(self, text: str, heartbeat: float) -> bool:
        claim = _parsed(text)
        if claim.get("machine") == _machine() and not _is_alive(int(claim["process"])):
            return True
        return self._now() - heartbeat > self.stale_after

    def _now(self) -> float:
        """The time by the clock that stamps the claims: those of machines may differ."""
        probe = self.folder / f".{uuid4().hex}.now"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _signature() -> str:
    """The text of a claim, which no other claim has."""
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    who = {"host": socket.gethostname(), "process": os.getpid(), "started": started}
    return json.dumps({**who, "machine": _machine(), "token": uuid4().hex}, indent=2) + "\n"


def _machine() -> str:
    """Where a number stands for one process: a boot of a host, and a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # there a signal of 0 is no question; the heartbeat decides
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> tuple[str, float] | None:
    """The text and the heartbeat of a claim; opened anew, so that a network file system asks its server."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _parsed(text: str) -> dict[str, Any]:
    try:
        claim = json.loads(text)
    except ValueError:  # read while it was written
        return {}
    return claim if isinstance(claim, dict) else {}
