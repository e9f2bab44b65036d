"""Report of an unlearned model: one record for all domains, and its JSON form."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.report.sections import KINDS, Measurement, Part, Section, built

__all__ = ["JSON", "SCHEMA", "Headline", "UnlearningReport"]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
SCHEMA = "lightning-unlearn/report/1"
"""Name and version of the layout; the version changes when a reader of the old one would be misled."""

Tone: TypeAlias = Literal["good", "warning", "bad", "neutral"]


def _environment() -> dict[str, str]:
    versions = {name: version(name) for name in ("lightning-unlearn", "lightning", "torch")}
    return {**versions, "python": platform.python_version(), "platform": platform.platform()}


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Headline:
    """The verdict in plain words, for a reader who reads nothing else.

    Args:
        word: The verdict, such as ``"suppressed but recoverable"``.
        tone: ``"good"``, ``"warning"``, ``"bad"`` or ``"neutral"``: the colour that it is shown in, beside the word.
        summary: What it means, in a sentence or two.
        reasons: The measurements that decided it, a sentence each.
        advice: What to do or to file, a sentence each.

    Raises:
        ValueError: If there is no word, or the tone is unknown.
    """

    word: str
    tone: Tone
    summary: str
    reasons: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of("tone", self.tone, Tone)
        if not self.word:
            raise ValueError("A headline needs the word of the verdict, such as word='undecided'.")


@dataclass(frozen=True, kw_only=True)
class UnlearningReport:
    """All that was asked, done and measured, in sections: JSON, Markdown, HTML and loggers are written from it.

    Args:
        title: What the report is about, or its outcome in one sentence.
        sections: The evidence, in order.
        headline: The verdict; ``None`` where the report draws none.
        subject: What was asked, and of which model: names and short values for the top of the page.
        provenance: Hashes, settings, times: what tells this run from others.
        limits: What the evidence does not show, a sentence or two each.
        terms: Terms and their meaning.
        environment: Versions and platform. Default: those of this process.
        created: Time of the report, ISO 8601 in UTC. Default: now.
        schema: Name and version of the layout.

    Raises:
        ValueError: If two sections have one id, or the layout is of another version.

    Example:
        >>> report = UnlearningReport(
        ...     title="SimNPO on tiny",
        ...     sections=[Section("forget", "Forget set", [Measurement("accuracy", 0.1, n=10, better="lower")])],
        ... )
        >>> report.measurement("forget", "accuracy").value
        0.1
        >>> UnlearningReport.from_dict(report.to_dict()) == report
        True
    """

    title: str
    sections: list[Section] = field(metadata={"many": Section})
    headline: Headline | None = field(default=None, metadata={"one": Headline})
    subject: dict[str, JSON] = field(default_factory=dict)
    provenance: dict[str, JSON] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    terms: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=_environment)
    created: str = field(default_factory=_utc_now)
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"The report has the layout {self.schema!r}, but this version reads {SCHEMA!r}.")
        ids = [section.id for section in self.sections]
        if len(set(ids)) != len(ids):
            raise ValueError(f"Two sections have one id: {ids}.")
        for name in ("subject", "provenance"):
            object.__setattr__(self, name, _strict(getattr(self, name)))

    def section(self, id: str) -> Section:
        """The section with this id.

        Raises:
            KeyError: If there is none.
        """
        for section in self.sections:
            if section.id == id:
                return section
        raise KeyError(f"The report has no section {id!r}. It has {[section.id for section in self.sections]}.")

    def measurements(self) -> Iterator[tuple[str, Measurement]]:
        """All measurements, each with the id of its section."""
        for section in self.sections:
            for part in section.measurements:
                yield section.id, part

    def measurement(self, section: str, name: str, variant: str | None = None) -> Measurement:
        """A measurement of a section by its name, and its variant where there are several.

        Raises:
            KeyError: If there is none, or several.
        """
        found = [m for m in self.section(section).measurements if m.name == name and variant in (None, m.variant)]
        if len(found) == 1:
            return found[0]
        there = [m.key for m in self.section(section).measurements]
        raise KeyError(f"The section {section!r} has {len(found)} measurements {name!r}. It has {there}.")

    def parts(self) -> Iterator[Part]:
        """All parts, in order."""
        for section in self.sections:
            yield from section.parts

    def to_dict(self) -> dict[str, Any]:
        """The report as strict JSON values, in the layout of [`report_schema`][lightning_unlearn.report_schema]."""
        sections = [{**asdict(section), "parts": list(map(_part, section.parts))} for section in self.sections]
        shell = asdict(replace(self, sections=[]))
        return {"schema": shell.pop("schema"), **shell, "sections": sections}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> UnlearningReport:
        """The report that `to_dict` described. Keys that have a default may be missing.

        Raises:
            ValueError: If it has another layout, a key is missing or unknown, or a value is wrong.
        """
        given = record.get("schema") if isinstance(record, dict) else None
        if given != SCHEMA:
            raise ValueError(f"Not a report that this version reads: its schema is {given!r}, and not {SCHEMA!r}.")
        return built(cls, record, "report")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> UnlearningReport:
        """Read a ``report.json``, or the one in the folder ``path``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not the JSON of a report; see `from_dict`.
        """
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file, or a part of one: {error}") from None
        try:
            return cls.from_dict(record)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _part(part: Part) -> dict[str, Any]:
    (kind,) = (name for name, cls in KINDS.items() if isinstance(part, cls))
    return {"kind": kind, **asdict(part)}


def _strict(value: Any) -> Any:
    """JSON values without numbers that are not finite, which become ``None``."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON.")
