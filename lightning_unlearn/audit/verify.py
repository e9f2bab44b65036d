"""Verification of records: the chain, its signatures, and the files that it is about."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lightning_unlearn.audit.canonical import canonical, parsed, rebuilt
from lightning_unlearn.audit.data import asked_rows
from lightning_unlearn.audit.evidence import Evidence
from lightning_unlearn.audit.hashes import rows_root
from lightning_unlearn.audit.keys import key_id, signed_by
from lightning_unlearn.audit.model_check import BASE, TIED, compare_model
from lightning_unlearn.audit.record import FIRST, SCHEMA, Head, digests, record_hash
from lightning_unlearn.audit.recount import recounted
from lightning_unlearn.audit.report_check import compare_report
from lightning_unlearn.audit.verdict import RULE, conclude
from lightning_unlearn.language.data.columns import Columns

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["Fault", "verify_record"]

_LEVELS: dict[str, Literal["incomplete", "note"]] = {BASE: "incomplete", TIED: "note"}
_LINE, _RECORD = {"digests", "hash", "record"}, {"body", "prev", "schema", "seq"}


class Fault(NamedTuple):
    """Something that is wrong with a record, or that could not be checked.

    Args:
        place: Where, such as ``"entry 2"`` or the name of a file.
        kind: What kind of fault, such as ``"wrong hash"``.
        what: What it is, in words.
        level: ``"tampered"`` where something differs from what was recorded, ``"incomplete"`` where something could not
            be checked, ``"note"`` for what a reader has to know.
    """

    place: str
    kind: str
    what: str
    level: Literal["tampered", "incomplete", "note"] = "tampered"

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.what}"


def verify_record(
    record: str | os.PathLike[str],
    public_key: Ed25519PublicKey | None = None,
    models: Mapping[str, str | os.PathLike[str]] | None = None,
    report: str | os.PathLike[str] | None = None,
    expect_head: Head | None = None,
    rows: Iterable[Any] | None = None,
    secret: bytes | None = None,
) -> list[Fault]:
    """Check a record, and the files that it is about.

    It finds a changed field, a wrong hash, a broken chain, entries that are missing, repeated or in another order,
    signatures that are missing, wrong or of another key, time that goes backwards, bytes that are not canonical, models
    and reports that differ from what was recorded, and verdicts that do not follow from the recorded numbers. It can't
    find a cut tail without ``expect_head``, a chain that the key's owner has written anew, or a clock that was wrong.

    Args:
        record: File of the record.
        public_key: Key that the signatures must be of. No key in the record is trusted.
        models: Folders or files by role, such as ``{"after": "out/model"}``.
        report: The report as JSON.
        expect_head: Number and hash of an entry that were kept elsewhere: it must be there.
        rows: The rows to forget.
        secret: The 32 bytes that the rows are hashed under.

    Returns:
        All faults; an empty list where there is none.

    Raises:
        FileNotFoundError: If there is no such record.
    """
    lines = Path(record).read_bytes().split(b"\n")
    last = lines.pop()
    faults = [Fault(f"line {len(lines) + 1}", "cut off", "the last line has no end")] if last else []
    entries = []
    for number, line in enumerate(lines):
        entry, found = _line(number, line)
        faults += found
        if entry is not None:
            entries.append(entry)
    faults += [*_sequence(entries), *_chain(entries), *_times(entries), *_signatures(entries, public_key)]
    faults += _head(entries, expect_head)
    bodies = [(f"entry {record['seq']}", record["body"]) for record in (entry["record"] for entry in entries)]
    faults += [fault for place, body in bodies for fault in _verdict(place, body)]
    for role, path in (models or {}).items():
        faults += _model(role, path, bodies)
    if report is not None:
        faults += _report(report, bodies)
    if rows is not None and secret is not None:
        faults += _rows(list(rows), secret, bodies)
    if not lines and not last:
        faults.append(Fault(str(record), "empty", "the record has no entry", level="incomplete"))
    return faults


def _line(number: int, line: bytes) -> tuple[dict[str, Any] | None, list[Fault]]:
    place = f"line {number + 1}"
    try:
        entry = parsed(line)
    except ValueError as error:
        return None, [Fault(place, "unreadable", str(error))]
    if not _is_entry(entry):
        return None, [Fault(place, "unknown schema", f"it is not an entry of {SCHEMA}")]
    record, faults = entry["record"], []
    place = f"entry {record['seq']}"
    if record["schema"] != SCHEMA:
        faults.append(
            Fault(place, "unknown schema", f"its schema is {record['schema']!r}, but this version reads {SCHEMA!r}")
        )
    if canonical(entry) != line:
        faults.append(Fault(place, "not canonical", "its bytes are not the canonical form of its content"))
    here, then = digests(record), entry["digests"] if isinstance(entry["digests"], dict) else {}
    changed = sorted(path for path in here.keys() | then.keys() if here.get(path) != then.get(path))
    if record_hash(record) != entry["hash"]:
        what = f"its content does not match its hash {str(entry['hash'])[:16]}..."
        faults.append(Fault(place, "wrong hash", what))
        faults += [Fault(place, "changed field", path) for path in changed]
    elif changed:
        faults.append(Fault(place, "wrong digests", f"those of {', '.join(changed)} do not match the fields"))
    return entry, faults


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) - {"signature"} != _LINE or not isinstance(value["record"], dict):
        return False
    record = value["record"]
    return set(record) == _RECORD and isinstance(record["body"], dict) and type(record["seq"]) is int


def _sequence(entries: list[dict[str, Any]]) -> Iterator[Fault]:
    numbers = [entry["record"]["seq"] for entry in entries]
    seen: set[int] = set()
    for number in numbers:
        if number in seen:
            yield Fault(f"entry {number}", "duplicate", "it occurs more than once")
        elif seen and number < max(seen):
            yield Fault(f"entry {number}", "order", f"it comes after entry {max(seen)}")
        seen.add(number)
    for number in range(max(seen, default=-1) + 1):
        if number not in seen:
            yield Fault(f"entry {number}", "missing", "it was removed")


def _chain(entries: list[dict[str, Any]]) -> Iterator[Fault]:
    before = FIRST
    for entry in entries:
        record = entry["record"]
        if record["prev"] != before:
            what = "it does not follow from the entry before it" if before != FIRST else "it is not the first entry"
            yield Fault(f"entry {record['seq']}", "broken prev", what)
        before = record_hash(record)


def _times(entries: list[dict[str, Any]]) -> Iterator[Fault]:
    latest = None
    for entry in entries:
        body, place = entry["record"]["body"], f"entry {entry['record']['seq']}"
        time = body.get("recorded_at")
        if time is None:
            continue
        try:
            now = datetime.strptime(str(time), "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            yield Fault(place, "time", f"{time!r} is not a time in UTC such as 2026-01-31T12:00:00Z")
            continue
        if latest is not None and now < latest:
            yield Fault(place, "time goes backwards", f"{time} is earlier than the entry before it")
        latest = now if latest is None else max(latest, now)


def _signatures(entries: list[dict[str, Any]], key: Ed25519PublicKey | None) -> Iterator[Fault]:
    if key is None:
        yield Fault("signatures", "not checked", "give the public key of whoever keeps the record", level="incomplete")
        return
    for entry in entries:
        place, signed = f"entry {entry['record']['seq']}", entry.get("signature")
        if not isinstance(signed, dict):
            yield Fault(place, "missing signature", "nobody has signed it")
        elif signed.get("key_id") != key_id(key):
            what = f"it names the key {signed.get('key_id')}, but the key given is {key_id(key)}"
            yield Fault(place, "unknown key", what)
        elif not signed_by(key, record_hash(entry["record"]), str(signed.get("value"))):
            yield Fault(place, "bad signature", f"it is not a signature of this content by the key {key_id(key)}")


def _head(entries: list[dict[str, Any]], head: Head | None) -> Iterator[Fault]:
    if head is None:
        return
    found = [entry for entry in entries if entry["record"]["seq"] == head.seq]
    if not found:
        yield Fault(f"entry {head.seq}", "cut tail", f"the record ends before entry {head}, which was kept elsewhere")
    elif record_hash(found[0]["record"]) != head.hash:
        yield Fault(f"entry {head.seq}", "another head", "it is not the entry whose hash was kept elsewhere")


def _verdict(place: str, body: dict[str, Any]) -> Iterator[Fault]:
    if "evidence" not in body:
        return
    if body.get("rule") != RULE:
        what = f"it follows the rules {body.get('rule')!r}, but this version applies {RULE!r}"
        yield Fault(place, "verdict not checked", what, level="incomplete")
        return
    try:
        evidence = rebuilt(Evidence, body["evidence"])
        verdict = conclude(evidence)
    except ValueError as error:
        yield Fault(place, "verdict not reproduced", f"its evidence can't be read: {error}")
        return
    for name, value in (("verdict", verdict.name), ("headline", verdict.headline), ("action", verdict.action)):
        if body.get(name) != value:
            what = f"{name} is {body.get(name)!r}, but the numbers give {value!r}"
            yield Fault(place, "verdict not reproduced", what)
    yield from (Fault(place, "numbers that contradict", what) for what in recounted(evidence))


def _model(role: str, path: str | os.PathLike[str], bodies: list[tuple[str, dict[str, Any]]]) -> Iterator[Fault]:
    recorded = _latest(bodies, "models", role)
    if recorded is None:
        yield Fault(str(path), "not recorded", f"the record holds no hash of the model {role!r}", level="incomplete")
        return
    yield from _compared(str(path), compare_model(recorded, Path(path)))


def _compared(place: str, differences: Iterator[tuple[str, str]]) -> Iterator[Fault]:
    try:
        for kind, what in differences:
            yield Fault(place, kind, what, _LEVELS.get(kind, "tampered"))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        yield Fault(place, "unreadable", f"its part of the record is damaged: {error!r}")


def _report(path: str | os.PathLike[str], bodies: list[tuple[str, dict[str, Any]]]) -> Iterator[Fault]:
    recorded = _latest(bodies, "report")
    if recorded is None:
        yield Fault(str(path), "not recorded", "the record holds no hash of a report", level="incomplete")
        return
    verdict = next((body for _, body in reversed(bodies) if "evidence" in body), None)
    yield from _compared(str(path), compare_report(Path(path), recorded, verdict))


def _rows(rows: list[Any], secret: bytes, bodies: list[tuple[str, dict[str, Any]]]) -> Iterator[Fault]:
    recorded = [body for _, body in bodies if isinstance(body.get("forget"), dict)]
    if not recorded:
        yield Fault("rows", "not recorded", "the record holds no hash of the rows to forget", level="incomplete")
        return
    whole = rows_root(rows, secret)
    if not any(body["forget"].get("rows_root") in (whole, _asked_root(rows, secret, body)) for body in recorded):
        count = recorded[-1]["forget"].get("rows")
        what = f"{len(rows)} rows were given and {count} were recorded, or the secret is another one"
        yield Fault("rows", "rows differ", what)


def _asked_root(rows: list[Any], secret: bytes, body: dict[str, Any]) -> str | None:
    """Hash of the rows as an audit asks for them: the question and the answer of each row alone."""
    with suppress(ValueError, AttributeError, TypeError, KeyError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = asked_rows(rows, Columns(**body.get("columns", {})))
        return rows_root([{"question": probe.question, "answer": probe.answer} for probe in asked], secret)
    return None


def _latest(bodies: list[tuple[str, dict[str, Any]]], *path: str) -> dict[str, Any] | None:
    """The newest part of the bodies at a path."""
    for _, body in reversed(bodies):
        part: Any = body
        for name in path:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict):
            return part
    return None
