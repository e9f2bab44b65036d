"""Parts of the bodies of a record: requests, models, reports, verdicts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from lightning_unlearn.audit.canonical import canonical, writable
from lightning_unlearn.audit.deadlines import deadline
from lightning_unlearn.audit.hashes import content_hash, header_hash
from lightning_unlearn.audit.verdict import Verdict
from lightning_unlearn.core.files import sha256

__all__ = [
    "TOKENIZER_FILES",
    "base_hash",
    "model_entry",
    "model_files",
    "report_entry",
    "report_numbers",
    "request_entry",
    "verdict_entry",
]

_NOT_THE_MODEL = {".md", ".html", ".jsonl", ".log", ".pem", ".lock"}
TOKENIZER_FILES = re.compile(r"(tokenizer|vocab|merges|special_tokens|added_tokens|spiece|sentencepiece).*|.*\.model$")


def request_entry(
    received: date,
    basis: str,
    request_id: str | None = None,
    extended: str | None = None,
    holidays: Iterable[date] = (),
) -> dict[str, Any]:
    """A request, with the day by which it is to be answered.

    Args:
        received: Day on which it was received.
        basis: Article or contract that it rests on.
        request_id: Its number in your files; by default a random one.
        extended: Reason of an extension by two months.
        holidays: Public holidays, for the deadlines.
    """
    days = sorted(set(holidays))
    return {
        "id": request_id or secrets.token_hex(8),
        "subject_ref": secrets.token_hex(8),  # never a name: which person it is stands in the case file
        "received_at": received.isoformat(),
        "basis": basis,
        "due_at": deadline(received, 1, days).isoformat(),
        "extended_to": deadline(received, 3, days).isoformat() if extended is not None else None,
        "reason": extended,
        "holidays": [day.isoformat() for day in days],
    }


def model_entry(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Hashes of a model: its weights by tensor, its files, tokenizer and chat template, and the base of an adapter.

    Pages and notes beside the model, such as ``README.md``, are left out.

    Args:
        path: Folder, or file of weights.

    Raises:
        FileNotFoundError: If there is no such file, or no weights in the folder.
        ValueError: If a file is damaged.
    """
    path, content = Path(path), content_hash(path)
    files = model_files(path)
    entry: dict[str, Any] = {
        "content_hash": content.root,
        "kind": content.kind,
        "dtypes": sorted({tensor.dtype for tensor in content.tensors}),
        "tensors": [[t.name, t.dtype, list(t.shape), t.leaf] for t in content.tensors],
        "files": files,
    }
    if path.is_dir():
        parts = [[name, digest] for name, _, digest in files if TOKENIZER_FILES.fullmatch(name)]
        entry["tokenizer"] = _digest(parts) if parts else None
        entry["template"] = _template(path)
        entry["base"] = base_hash(path)
    return entry


def base_hash(path: str | os.PathLike[str]) -> str | None:
    """Hash of the weights of the local model that an adapter changes; ``None`` where there is none.

    Args:
        path: Folder of a model.

    Raises:
        FileNotFoundError: If the base model has no weights.
        ValueError: If a file is damaged.
    """
    try:
        config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    base = Path(config.get("base_model_name_or_path") or "").expanduser()
    if base == Path() or not base.exists():
        return None  # of the hub, by its name and revision
    own, further = content_hash(base).root, base_hash(base)
    return own if further is None else hashlib.sha256(f"{own} on {further}".encode()).hexdigest()


def model_files(path: Path) -> list[list[Any]]:
    """Name, size and hash of each file; of a safetensors file, the hash of its header: its tensors have their own."""
    if path.is_file():
        files = [path]
    else:
        every = (file for file in path.rglob("*") if file.is_file() and file.suffix not in _NOT_THE_MODEL)
        files = [file for file in every if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    listed = []
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        safe = file.suffix == ".safetensors"
        listed.append([name, file.stat().st_size, header_hash(file) if safe else sha256(file)])
    return sorted(listed)


def report_entry(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Hash of a report, and all numbers in it.

    Args:
        path: The report as JSON.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON.
    """
    return {"sha256": sha256(path), "numbers": report_numbers(path)}


def report_numbers(path: str | os.PathLike[str]) -> list[list[str]]:
    """Place and value of each number of a JSON file, as decimal strings; of a long list, a hash."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The report {path} is no JSON: {error}.") from None
    return [[place, text] for place, text in _numbers(value, "")]


def verdict_entry(verdict: Verdict) -> dict[str, Any]:
    """A verdict with the numbers that it was computed from, so that it can be computed again."""
    return {
        "verdict": verdict.name,
        "headline": verdict.headline,
        "action": verdict.action,
        "rule": verdict.rule,
        "limits": list(verdict.limits),
        "not_run": dict(verdict.not_run),
        "notes": list(verdict.notes),
        "evidence": writable(verdict.evidence),
    }


def _numbers(value: Any, place: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, (int, float)):
        yield place, repr(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, f"{place}/{key}")
    elif len(value) > 64 and all(isinstance(part, (int, float)) for part in value):
        yield place, _digest([repr(part) for part in value])
    else:
        for number, part in enumerate(value):
            yield from _numbers(part, f"{place}/{number}")


def _template(folder: Path) -> str | None:
    """Hash of the chat template, wherever the folder has it."""
    if (file := folder / "chat_template.jinja").is_file():
        return sha256(file)
    if not (file := folder / "tokenizer_config.json").is_file():
        return None
    template = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
    return None if template is None else _digest(template)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()
