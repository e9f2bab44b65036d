"""Record of one unlearning run, and its JSON form."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from lightning_unlearn.core.evaluation import Evaluation

__all__ = ["JSON", "Attack", "ImageGrid", "UnlearnReport"]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


def _environment() -> dict[str, str]:
    versions = {name: version(name) for name in ("lightning-unlearn", "lightning", "torch")}
    return {**versions, "python": platform.python_version(), "platform": platform.platform()}


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class ImageGrid:
    """Images of the same prompts and seeds before and after the run, a row a set.

    Args:
        columns: Names of the columns.
        before: The images of each row before the run, as data URIs, see [`png`][lightning_unlearn.png].
        after: The images after it, with the same rows.
    """

    columns: list[str]
    before: dict[str, list[str]]
    after: dict[str, list[str]]


@dataclass(frozen=True)
class Attack:
    """An attack on the model that came out of the run.

    Args:
        name: Name of the attack, such as ``"UnlearnDiffAtk"``.
        summary: The outcome in a sentence or two.
        evaluation: The rates, and an example for each attacked input: ``output`` is the input that the attack found,
            or ``input`` again where the model needed no attack.
        images: An image for each example, as data URIs; none for a model without images.
    """

    name: str
    summary: str
    evaluation: Evaluation
    images: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class UnlearnReport:
    """One run: what it was, and what was measured before and after it. The same record serves all domains.

    Args:
        method: Name of the method, such as ``"SimNPO"``.
        seed: The run's random seed.
        model: Name of the model.
        model_sha256: Hash of the weights that came out of the run.
        data_sha256: Hash of the forget and retain data.
        seconds: Wall-clock time of the training part, in seconds.
        settings: The method's and the trainer's settings.
        before: The evaluation before the first update.
        after: The evaluation after the last update.
        title: Headline of the page. Default: a sentence made from the evaluations.
        peak_memory_bytes: Peak memory of the training part, in bytes; 0 where it was not measured.
        curves: Evaluations along the way, by ascending step.
        images: Images before and after, of a model that draws.
        attacks: Attacks on the model after the run.
        notes: Terms of this report and what they mean, for the end of the page.
        environment: Versions and platform of the run. Default: those of this process.
        created: Time of the report, ISO 8601 in UTC. Default: now.

    Example:
        >>> from lightning_unlearn import Evaluation, UnlearnReport
        >>> report = UnlearnReport(
        ...     method="SimNPO",
        ...     seed=0,
        ...     model="tiny",
        ...     model_sha256="ab",
        ...     data_sha256="cd",
        ...     seconds=1.5,
        ...     settings={"beta": 2.5},
        ...     before=Evaluation(0, {"forget_nll": 0.4}),
        ...     after=Evaluation(80, {"forget_nll": 6.1}),
        ... )
        >>> report.to_dict()["after"]
        {'step': 80, 'metrics': {'forget_nll': 6.1}, 'examples': [], 'hit_means': ''}
        >>> UnlearnReport.from_dict(report.to_dict()) == report
        True
    """

    method: str
    seed: int
    model: str
    model_sha256: str
    data_sha256: str
    seconds: float
    settings: dict[str, JSON]
    before: Evaluation
    after: Evaluation
    title: str = ""
    peak_memory_bytes: int = 0
    curves: list[Evaluation] = field(default_factory=list)
    images: ImageGrid | None = None
    attacks: list[Attack] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=_environment)
    created: str = field(default_factory=_utc_now)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as strict JSON values: a number that is not finite becomes ``None``."""
        return _strict(asdict(self))

    def hidden(self) -> UnlearnReport:
        """The same report without the texts of rows to forget, see `Evaluation`."""
        return replace(
            self,
            before=self.before.hidden(),
            after=self.after.hidden(),
            curves=[evaluation.hidden() for evaluation in self.curves],
            attacks=[replace(attack, evaluation=attack.evaluation.hidden()) for attack in self.attacks],
        )

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> UnlearnReport:
        """Rebuild the report that :meth:`to_dict` described; a metric that is ``None`` is read back as NaN.

        Raises:
            ValueError: If a key is missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        if record.keys() != known:
            missing, unknown = sorted(known - record.keys()), sorted(record.keys() - known)
            raise ValueError(f"Not a report of this library version: missing keys {missing}, unknown keys {unknown}.")
        parts = {
            "before": Evaluation.from_dict(record["before"]),
            "after": Evaluation.from_dict(record["after"]),
            "curves": [Evaluation.from_dict(evaluation) for evaluation in record["curves"]],
            "images": None if record["images"] is None else ImageGrid(**record["images"]),
            "attacks": [
                Attack(**attack | {"evaluation": Evaluation.from_dict(attack["evaluation"])})
                for attack in record["attacks"]
            ],
        }
        return cls(**record | parts)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> UnlearnReport:
        """Read a ``report.json``, or the one in the folder ``path``."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
