"""Contract between a request to forget and the command that carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.report.model import UnlearningReport

__all__ = ["Findings", "Plan", "Request", "RequestOptions"]


@dataclass(frozen=True)
class Plan:
    """What a request will do and what it costs, as it is printed before the first step.

    Args:
        lines: Short values by name: ``model``, ``to forget``, ``to keep``, ``method``, ``stops when``, ``cost``,
            ``evidence``, ``writes``.
        notes: What the user should know, a sentence or two each.
    """

    lines: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(map(len, self.lines), default=0) + 2
        lines = [f"  {f'{name}:':<{width}}{text}" for name, text in self.lines.items()]
        return "\n".join([*lines, *(f"  Note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class RequestOptions:
    """Options that requests of all kinds share.

    Args:
        output_dir: Folder to write.
        seed: Seed of all draws.
        max_steps: Steps of training at most; by default as many as the method needs for so many rows.
        accelerator: Device to train on, as the Trainer names it.
        devices: Number of devices, or ``auto`` for all.
        strategy: Strategy of the Trainer, such as ``ddp``.
        precision: Precision of the Trainer, such as ``bf16-mixed``; by default 32 bits.
        key: PEM file of the private Ed25519 key that signs the record, or ``none`` for a record without signature. By
            default one that is made once, and kept in your configuration folder.
        show_text: Show the texts and images of what was to be forgotten in the report. They would be a new copy of it.
        dry_run: Check everything, print the plan, and stop.

    Raises:
        ValueError: If ``max_steps`` is below 1.
    """

    output_dir: str = "runs/forget"
    seed: int = 0
    max_steps: int | None = None
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: str | None = None
    key: str | None = None
    show_text: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            at_least("max_steps", self.max_steps, 1)

    def trainer(self) -> dict[str, Any]:
        """The settings of the Trainer that stand here."""
        given = {"accelerator": self.accelerator, "devices": self.devices, "strategy": self.strategy}
        return given | ({"precision": self.precision} if self.precision is not None else {})


@dataclass(frozen=True)
class Findings:
    """What was measured of the model that came out.

    Args:
        report: The report; its headline is the verdict.
        entry: Body of the record's entry on it, without the report: that of
            [`verdict_entry`][lightning_unlearn.audit.entries.verdict_entry] for a language model, and for others
            ``verdict``, ``headline`` and the numbers that they rest on.
    """

    report: UnlearningReport
    entry: dict[str, Any]


class Request(Protocol):
    """A request to forget for one kind of model, in the steps of `run_request`, which calls them in this order."""

    options: RequestOptions

    @property
    def kind(self) -> str:
        """``"language"``, ``"diffusion"`` or ``"module"``."""

    def check(self) -> None:
        """Refuse what would fail later, before anything is written: models, rows, columns, methods, packages.

        Raises:
            ValueError: If something does not fit.
            FileNotFoundError: If something is not there.
            ImportError: If a package is missing.
        """

    def plan(self) -> Plan:
        """What the request will do. Called after `check`."""

    def entries(self, secret: bytes) -> dict[str, Any]:
        """What the record says of the request: what is to be forgotten, the model before it, the method with settings.

        Two requests with the same entries are the same request: one goes on where the other was killed. So there is
        nothing random or of the clock in them, and no text of a row: rows are hashed under the secret. Local models
        stand in ``{"models": {"before": model_entry(path)}}``, which ``verify-record`` looks at.

        Args:
            secret: 32 bytes of this output folder.
        """

    def config(self, folder: Path) -> dict[str, Any]:
        """The run as a configuration of LightningCLI: ``seed_everything``, ``model``, ``data``, ``trainer``.

        The files of the user stand in it with absolute paths. It has no logger, no checkpoints and no
        ``default_root_dir``.

        Args:
            folder: Folder for files that the run reads and that stay, such as rows that were generated. It is none that
                is handed out.
        """

    def export(self, ckpt: Path, folder: Path) -> None:
        """Write the model in the form that plain libraries open.

        Args:
            ckpt: Checkpoint of the weights after the run, and of nothing else.
            folder: Folder to write; it does not exist, and is moved to its place when this returns.
        """

    def evidence(self, model: Path, work: Path) -> Findings:
        """Measure the model before and after. What is done may be kept in ``work``, to go on after a kill.

        Args:
            model: The folder that `export` wrote.
            work: Folder for files of this step; it is removed when the request is done. ``outcome.json`` in it has the
                outcomes of the run's callbacks, such as that of ``StopWhenForgotten``, by the name of the class.
        """
