"""The report of one unlearning run and its JSON form."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from lightning_unlearn.core.evaluation import Answer, Evaluation
from lightning_unlearn.report.html import render

__all__ = ["JSON", "UnlearnReport"]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

LAYOUT = {"step", "answers"}  # what stands beside the metrics in an evaluation's JSON


def _library_version() -> str:
    return version("lightning-unlearn")


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True, kw_only=True)
class UnlearnReport:
    """What one run was, and what the model knew before and after it.

    Args:
        method: Name of the method, such as ``"SimNPO"``.
        seed: The run's random seed.
        model: Name of the model.
        model_sha256: Hash of the weights that came out of the run.
        data_sha256: Hash of the forget and retain data.
        seconds: Wall-clock time of the training part, in seconds.
        peak_memory_bytes: Peak memory of the training part, in bytes; 0 where it was not measured.
        settings: The method's and the trainer's settings.
        before: The evaluation before the first update.
        after: The evaluation after the last update.
        curves: Evaluations along the way, by ascending step.
        library_version: Version of lightning-unlearn that ran. Default: the installed one.
        created: Time of the report, ISO 8601 in UTC. Default: now.

    Example:
        >>> from lightning_unlearn.core.evaluation import Evaluation
        >>> report = UnlearnReport(
        ...     method="SimNPO",
        ...     seed=0,
        ...     model="tiny",
        ...     model_sha256="ab",
        ...     data_sha256="cd",
        ...     seconds=1.5,
        ...     peak_memory_bytes=0,
        ...     settings={"beta": 2.5},
        ...     before=Evaluation(0, {"forget_nll": 0.4}),
        ...     after=Evaluation(80, {"forget_nll": 6.1}),
        ...     curves=[],
        ... )
        >>> report.to_dict()["after"]
        {'step': 80, 'forget_nll': 6.1, 'answers': []}
        >>> UnlearnReport.from_dict(report.to_dict()) == report
        True
    """

    method: str
    seed: int
    model: str
    model_sha256: str
    data_sha256: str
    seconds: float
    peak_memory_bytes: int
    settings: dict[str, JSON]
    before: Evaluation
    after: Evaluation
    curves: list[Evaluation]
    library_version: str = field(default_factory=_library_version)
    created: str = field(default_factory=_utc_now)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as strict JSON values.

        Evaluations are flat: ``step``, every metric by its name, ``answers``. JSON has no NaN and no infinity; such a
        number becomes ``None``, and a metric that is ``None`` is read back as NaN.

        Raises:
            ValueError: If a metric is called ``step`` or ``answers``.
        """
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record |= {"before": _flat(self.before), "after": _flat(self.after), "curves": [_flat(e) for e in self.curves]}
        return {name: _strict(value) for name, value in record.items()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> UnlearnReport:
        """Rebuild the report that :meth:`to_dict` described.

        Raises:
            ValueError: If a key is missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        if record.keys() != known:
            missing, unknown = sorted(known - record.keys()), sorted(record.keys() - known)
            raise ValueError(f"Not a report of this library version: missing keys {missing}, unknown keys {unknown}.")
        before, after = _evaluation(record["before"]), _evaluation(record["after"])
        return cls(**record | {"before": before, "after": after, "curves": [_evaluation(e) for e in record["curves"]]})

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``report.json``, then ``report.html``, into ``folder``.

        Each file is replaced in one step: after a crash or on a full disk the old file is still whole.

        Raises:
            ImportError: If matplotlib or jinja2 is missing; ``report.json`` is written even then.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        _replace(folder / "report.json", text + "\n")
        _replace(folder / "report.html", render(self))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> UnlearnReport:
        """Read a ``report.json``, or the one in the folder ``path``."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _flat(evaluation: Evaluation) -> dict[str, Any]:
    if taken := LAYOUT & evaluation.metrics.keys():
        raise ValueError(f"A metric cannot be called {taken.pop()!r}: the report keeps that name. Rename the metric.")
    metrics = {name: float(value) for name, value in evaluation.metrics.items()}
    return {"step": evaluation.step, **metrics, "answers": [asdict(answer) for answer in evaluation.answers]}


def _evaluation(record: dict[str, Any]) -> Evaluation:
    metrics = {name: record[name] for name in record if name not in LAYOUT}
    metrics = {name: math.nan if value is None else value for name, value in metrics.items()}
    return Evaluation(record["step"], metrics, [Answer(**answer) for answer in record["answers"]])


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    """Put ``text`` in the place of ``path`` so that a reader sees the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # without it, a power cut can leave the new name on an empty file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
