"""Traces of the original model and of forgotten rows in files: what `doctor` reports."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_unlearn.core.evaluation import HIDDEN
from lightning_unlearn.core.retention import OWN_ANSWER, PRIVATE, RUN_KEY
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.other_weights import other_weights, unread_files
from lightning_unlearn.report.redaction import shown_rows

__all__ = ["Finding", "doctor", "is_readable"]


_LOGGED = ("unlearn/", "eval/")


class Finding(NamedTuple):
    """Something of the time before unlearning.

    Args:
        file: The file that it is in.
        place: Where in the file.
        kind: ``"starting weights"``, ``"reference likelihoods"``, ``"optimizer state"``, ``"frozen values"``,
            ``"rows"``, ``"answers"``, ``"metrics"``, ``"delta"`` or ``"other"``.
        what: What it is, in words.
        serious: Whether it gives away the model or the rows of before. A note, such as that a mask has frozen weights,
            does not.
    """

    file: Path
    place: str
    kind: str
    what: str
    serious: bool = True


def doctor(path: str | Path) -> list[Finding]:
    """Say what a file, or all files of a folder, hold of the time before unlearning.

    It reads checkpoints, weight files, deltas, exported folders, ledgers, reports, tables of answers, logged metrics
    and what an audit keeps. Nothing that a file holds is run: checkpoints are loaded with ``weights_only=True``.

    Args:
        path: File, or folder with files of any kind; in a folder, weights, archives and tables that can't be read are
            noted, and other files of a kind that is unknown are passed over.

    Returns:
        The findings; an empty list where there is nothing.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the file is damaged, of an unknown kind, or holds objects that can't be loaded safely.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {}, "optimizer_states": [{"state": {0: torch.ones(2)}}]}, f"{folder}/a.ckpt")
        ...     [finding.kind for finding in doctor(f"{folder}/a.ckpt")]
        ['optimizer state']
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path} (looked in {Path.cwd()}).")
    if path.is_file():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            known = ", ".join(_READERS)
            raise ValueError(
                f"{path} is of a kind that doctor does not know. It reads folders, and files with {known}."
            )
        return list(reader(path))
    every = [file for file in sorted(path.rglob("*")) if file.is_file()]
    files = [file for file in every if file.suffix.lower() in _READERS]
    if not files:
        raise ValueError(f"{path} has no file that doctor reads: it looks for {', '.join(_READERS)}.")
    found = [finding for file in files for finding in _READERS[file.suffix.lower()](file)]
    other = "weights of the same model with other numbers than those beside them, such as those of before"
    found += [Finding(file, place, "starting weights", other) for file, place in other_weights(files)]
    unread = "a file that doctor does not look into; it may hold weights or rows"
    return found + [Finding(file, "", "other", unread, serious=False) for file in unread_files(every)]


def is_readable(path: Path) -> bool:
    """Whether `doctor` reads files of this kind."""
    return path.suffix.lower() in _READERS


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _checkpoint(path: Path) -> Iterator[Finding]:
    checkpoint = _load(path)
    if not isinstance(checkpoint, dict):
        if isinstance(checkpoint, Tensor):
            return
        raise ValueError(f"{path} holds a {type(checkpoint).__name__} and no checkpoint, so doctor can't judge it.")
    held = (checkpoint.get(RUN_KEY) or {}).get("holds", {})
    for place, what in held.items():
        yield Finding(path, place, _kind(place.rpartition("/")[2]), what)
    weights = checkpoint.get("state_dict", checkpoint)
    weights = weights if isinstance(weights, Mapping) else {}
    for key, state in _items(checkpoint.get("callbacks")):
        for name, value in _items(state):
            place = f"callbacks/{key}/{name}"
            if place not in held:
                yield from _callback(path, place, str(name), value, state, weights)
        if isinstance(state, Mapping) and {"settings", "masks", "shapes"} <= state.keys():
            text = "a mask: weights that it froze are, in the model itself, what they were before"
            yield Finding(path, f"callbacks/{key}/masks", "frozen values", text, serious=False)
    yield from _optimizer(path, checkpoint)
    yield from _rows(path, "", {k: v for k, v in checkpoint.items() if "hyper_parameters" in str(k)})
    for key, value in checkpoint.items():
        if key not in ("state_dict", "callbacks") and weights is not checkpoint and _copies(value, weights):
            yield Finding(path, str(key), "other", "a second set of weights, such as an average that began before")
    if any(".lora_" in str(name) for name in weights) and any(".base_layer." in str(name) for name in weights):
        text = "adapters beside the starting weights, which are all there: export merges them"
        yield Finding(path, "state_dict", "starting weights", text)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error) or "GLOBAL" not in str(error):
            raise ValueError(f"{path} is not a PyTorch file, or a part of one.") from None
        raise ValueError(
            f"{path} holds objects of classes beside tensors and plain values, so doctor does not load it. Save it "
            "without them, such as hyperparameters that are objects, or look into it where you trust it."
        ) from None
    except PermissionError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}.") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{path} is not a PyTorch file, or a part of one.") from None


def _callback(
    path: Path, place: str, name: str, value: Any, state: Mapping[str, Any], weights: Mapping[str, Any]
) -> Iterator[Finding]:
    """What a callback's state has that the file does not say of itself."""
    if name == "history":
        yield from _answers(path, place, value if isinstance(value, list) else [])
    elif name in PRIVATE and "method" in state and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
        yield Finding(path, place, _kind(name), PRIVATE[name])
    elif _copies(value, weights):
        yield Finding(path, place, "other", "a second set of weights, such as an average that began before")


def _optimizer(path: Path, checkpoint: Mapping[str, Any]) -> Iterator[Finding]:
    states = checkpoint.get("optimizer_states") or ([checkpoint] if "param_groups" in checkpoint else [])
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves(states)):
        text = "averages of gradients of the rows, the ones to forget among them"
        yield Finding(path, "optimizer_states", "optimizer state", text)


def _rows(path: Path, place: str, value: Any) -> Iterator[Finding]:
    """Rows to forget that are written out among hyperparameters."""
    for key, part in _items(value):
        at = f"{place}/{key}".lstrip("/")
        if "forget" in str(key) and isinstance(part, (list, tuple)) and any(isinstance(row, dict) for row in part):
            yield Finding(path, at, "rows", f"{len(part)} rows to forget")
        else:
            yield from _rows(path, at, part)


def _copies(value: Any, weights: Mapping[str, Any]) -> bool:
    """Whether a value has tensors with the names and shapes of the model's."""
    if not isinstance(value, Mapping):
        return False
    shapes = {str(k): v.shape for k, v in weights.items() if isinstance(v, Tensor) and v.dim()}
    names = {
        wanted
        for name, part in value.items()
        for wanted in (str(name), str(name).removeprefix("module."))
        if isinstance(part, Tensor) and shapes.get(wanted) == part.shape
    }
    return bool(names) or any(_copies(part, weights) for part in value.values())


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()


def _kind(name: str) -> str:
    kinds = {"caches": "reference likelihoods", "history": "answers", "snapshot": "starting weights"}
    return kinds.get(name, "starting weights" if "starting weights" in PRIVATE.get(name, "") else "other")


# ---- other files -----------------------------------------------------------------------------------------------------


def _safetensors(path: Path) -> Iterator[Finding]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError('Reading .safetensors needs safetensors: pip install "lightning-unlearn[llm]"') from None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or a part of one: {error}.") from None
    if "lightning-unlearn-delta" in metadata:
        yield Finding(path, "", "delta", "a delta: with the unlearned model it gives the one before back")
    elif "row_ids" in metadata:
        rows = len(json.loads(metadata["row_ids"]))
        text = f"what a training step with {rows} rows added to the weights: a step of AmnesiacLedger"
        yield Finding(path, "", "rows", text)
    elif any(".lora_" in name or "lora_A" in name for name in names):
        text = "adapters: the base model without them is the one before, unless it was merged or unlearned itself"
        yield Finding(path, "", "other", text, serious=False)


def _json(path: Path) -> Iterator[Finding]:
    record = _parsed(path)
    yield from _own_answers(path, record)
    if isinstance(record, dict) and {"name", "model", "settings", "outcome"} == record.keys():
        yield from _part(path, record["outcome"])
    if not (isinstance(record, dict) and str(record.get("schema", "")).startswith("lightning-unlearn/report/")):
        return
    for section in UnlearningReport.read(path).sections:
        for number, part in enumerate(section.parts):
            if shown := shown_rows(part):
                yield Finding(path, f"{section.id}/{number}", "answers", shown)


def _json_lines(path: Path) -> Iterator[Finding]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a file of JSON lines, or a part of one: {error}.") from None
    yield from _own_answers(path, rows)


def _own_answers(path: Path, rows: Any) -> Iterator[Finding]:
    """Answers of the original model, as `forget --retain auto` and the cache of `OwnAnswers` keep them."""
    listed = [row for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)]
    cached = {"question", "answer", "ended"}
    known = [row for row in listed if OWN_ANSWER.items() <= row.items() or row.keys() == cached]
    if known:
        yield Finding(path, "", "answers", f"{len(known)} answers that the original model wrote")


def _part(path: Path, outcome: Any) -> Iterator[Finding]:
    """What a part of an audit has of the rows beside their scores."""
    sets = outcome.get("sets") if isinstance(outcome, dict) else None
    answers = (sets or {}).get("forget", {}).get("answers")
    if answers:
        yield Finding(
            path, "outcome/sets/forget", "answers", f"answers of a model to {len(answers)} questions to forget"
        )


def _secret(path: Path) -> Iterator[Finding]:
    text = "the key that rows are hashed under in audits and records: with it, short rows are found by trying"
    yield Finding(path, "", "rows", text)


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a JSON file, or a part of one: {error}.") from None


def _html(path: Path) -> Iterator[Finding]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if 'content="lightning-unlearn/report/' in text and '<meta name="rows-to-forget" content="shown">' in text:
        yield Finding(path, "", "answers", "a report page that shows the rows to forget")


def _markdown(path: Path) -> Iterator[Finding]:
    last = path.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
    if last.startswith("<!-- lightning-unlearn/report/") and last.endswith("rows to forget: shown -->"):
        yield Finding(path, "", "answers", "a report that shows the rows to forget")


def _table(path: Path) -> Iterator[Finding]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.reader(file))
    if rows and rows[0][:3] == ["set", "question", "expected"]:
        shown = [row for row in rows[1:] if "forget" in row[0] and HIDDEN not in row[1]]
        if shown:
            yield Finding(path, "", "answers", f"questions and answers of {len(shown)} rows to forget")
    if rows and "step" in rows[0] and any(name.startswith(_LOGGED) for name in rows[0]):
        text = "mean losses and likelihoods from the first step on, at first those of the original model"
        yield Finding(path, "", "metrics", text, serious=False)


def _answers(path: Path, place: str, evaluations: list[Any]) -> Iterator[Finding]:
    examples = [example for _, record in enumerate(evaluations) for example in record.get("examples", [])]
    shown = {e["input"] for e in examples if "forget" in e["set"] and not e["input"].startswith(HIDDEN)}
    if shown:
        yield Finding(path, place, "answers", f"questions and answers of {len(shown)} rows to forget")


_READERS: dict[str, Any] = {
    **dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), _checkpoint),
    ".safetensors": _safetensors,
    ".json": _json,
    ".jsonl": _json_lines,
    ".html": _html,
    ".md": _markdown,
    ".csv": _table,
    ".secret": _secret,
}
