"""Comparison of a report with what a record holds of it, and of its audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_unlearn.audit.entries import report_numbers
from lightning_unlearn.audit.gates import GATES
from lightning_unlearn.core.files import sha256

__all__ = ["compare_report"]


def compare_report(path: Path, recorded: dict[str, Any], verdict: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Kind and description of every difference between a report and its record.

    Args:
        path: The report as JSON.
        recorded: What `report_entry` has made of it.
        verdict: Body of the entry with the verdict; ``None`` without one.
    """
    if not path.is_file():
        yield "file missing", "there is no such file"
        return
    try:
        here, report = dict(report_numbers(path)), json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield "report differs", str(error)
        return
    then = dict(recorded.get("numbers", []))
    changed = sorted(place for place in then.keys() | here.keys() if here.get(place) != then.get(place))
    for place in changed:
        yield (
            "number differs",
            f"{place} is {here.get(place, 'missing')}, but {then.get(place, 'nothing')} was recorded",
        )
    if not changed and sha256(path) != recorded.get("sha256"):
        yield "report differs", "its numbers match the record, but another part has changed"
    if verdict is not None and isinstance(report, dict):
        yield from _verdict(report, verdict)


def _verdict(report: dict[str, Any], verdict: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a report says of the verdict and its tests, where the record says something else."""
    headline = report.get("headline")
    word = headline.get("word") if isinstance(headline, dict) else None
    if word is not None and word != verdict.get("verdict"):
        yield "verdict differs", f"the report says {word!r}, but the record says {verdict.get('verdict')!r}"
    recorded = {}
    for gate in verdict["evidence"].get("gates", []):
        name = GATES.get(gate["gate"], gate["gate"].replace("_", " "))
        recorded[f"kappa: {name}", ", ".join(filter(None, (gate["variant"], gate["score"])))] = gate["kappa"]
    for section in report.get("sections", []):
        for part in section.get("parts", []):
            key = part.get("name"), part.get("variant")
            value = part.get("value")
            if key in recorded and value is not None and repr(value) != recorded[key]:
                yield "number differs", f"{key[0]} ({key[1]}) is {value}, but the verdict rests on {recorded[key]}"
