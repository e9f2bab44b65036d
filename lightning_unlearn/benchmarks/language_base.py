"""Base class, protocol and rows of the benchmarks of language-model unlearning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch

from lightning_unlearn.benchmarks.entries import QUESTIONS, Entry
from lightning_unlearn.benchmarks.runs import Description
from lightning_unlearn.language.attacks import LanguageAttack
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.eval_logs import EvalLog, LoggedMetric, logged_rows
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.token_stats import format_of, token_stats
from lightning_unlearn.language.tokens import TokenRow

__all__ = [
    "Attacks",
    "LanguageBenchmark",
    "Protocol",
    "Rows",
    "evenly",
    "located",
    "question_row",
    "row_losses",
    "token_rows_of",
]

Rows = dict[str, list[dict[str, Any]]]
Attacks = dict[str, tuple[LanguageAttack, list[Probe]]]
"""Attacks by name, each with the probes that it is scored on."""


class LanguageBenchmark(ABC):
    """A published benchmark: its rows, what is measured on a model, and what counts as good.

    The arguments of a constructor are JSON values that it keeps under their names: each run's process builds the
    benchmark again.
    """

    name: ClassVar[str]
    """Name of the benchmark, and of the files that are written."""
    targets: ClassVar[dict[str, tuple[str, ...]]] = {
        "original": ("forget", "retain"),
        "retrained": ("retain",),
        "retrained again": ("retain",),
    }
    """The sets that each model to compare with is trained on, none for the model as it is. ``"original"`` is what
    unlearning starts from; ``"retrained"`` is the control, which a benchmark may lack."""
    entries: ClassVar[tuple[Entry, ...]] = QUESTIONS
    """The methods that are compared."""
    max_new_tokens: int = 64
    """Longest generated answer."""

    @property
    def description(self) -> Description:
        """The benchmark with its arguments, from which it can be built again."""
        arguments = {name: getattr(self, name) for name in signature(type(self)).parameters}
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}

    @abstractmethod
    def sources(self) -> list[str]:
        """The files that are read, or names on the hub."""

    @abstractmethod
    def rows(self) -> Rows:
        """Rows by set: ``"forget"``, ``"retain"``, and further sets that are never trained on."""

    def data(self, rows: Rows, protocol: Protocol, seed: int = 0) -> LanguageDataModule:
        """A data module of rows to forget, or to train on, and of rows to keep, where there are some."""
        return LanguageDataModule(
            rows["forget"],
            rows.get("retain"),
            max_length=protocol.max_length,
            batch_size=protocol.batch_size,
            seed=seed,
        )

    @abstractmethod
    def evaluate(self, module: LitCausalLM, generate: bool) -> EvalLog:
        """Everything that the benchmark measures on one model.

        Args:
            module: The model.
            generate: Whether to measure generated answers too, which takes most of the time.
        """

    def probes(self) -> list[Probe]:
        """Questions to the forget rows, for attacks; none where there are no attacks."""
        return []

    def attacks(self) -> Attacks:
        """Attacks on the original, the retrained models and the reported runs."""
        return {}

    @abstractmethod
    def compared(self, log: EvalLog, retrained: EvalLog | None) -> dict[str, float]:
        """The numbers of the table, from the log of a model and of the retrained one, if there is one."""

    @abstractmethod
    def score(self, log: EvalLog, original: EvalLog, retrained: EvalLog | None) -> float:
        """What tuning maximises."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How targets are trained and methods run.

    Args:
        learn_epochs: Passes over the rows when a target is trained.
        learn_lr: Learning rate of targets.
        epochs: Passes over the forget rows when unlearning.
        batch_size: Rows per step; when unlearning, this many forget rows and as many retain rows.
        max_length: Longest row in tokens.
        precision: Precision of the Trainer, and of the forward passes of what is measured.
    """

    learn_epochs: int = 5
    learn_lr: float = 3e-4
    epochs: int = 5
    batch_size: int = 4
    max_length: int = 512
    precision: str = "bf16-mixed"


def located(source: str) -> str:
    """The absolute path of a local file or folder, which a run finds from anywhere; a hub id as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def evenly(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most so many rows, at even distances."""
    size = min(count, len(rows))
    return [rows[i * len(rows) // size] for i in range(size)]


def question_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with ``question`` and ``answer`` of one with ``prompt`` and ``response``; another one as it is."""
    if "prompt" in row and "response" in row:
        return {"question": row["prompt"], "answer": row["response"]}
    return row


def token_rows_of(module: LitCausalLM, rows: Sequence[dict[str, Any]]) -> list[TokenRow]:
    """Tokens of questions with answers, or of texts, all of whose tokens are scored."""
    prompt_format = format_of(module)
    return [
        prompt_format.row(row["question"], row["answer"])
        if "question" in row
        else TokenRow([], prompt_format.tokenizer(row["text"], verbose=False)["input_ids"])
        for row in map(question_row, rows)
    ]


def row_losses(module: LitCausalLM, rows: Sequence[dict[str, Any]]) -> LoggedMetric:
    """Mean negative log-likelihood per token of questions with answers, or of texts, in nats."""
    losses = torch.stack([-part.log_prob.mean() for part in token_stats(module, token_rows_of(module, rows))])
    return logged_rows({"avg_loss": losses}, of="avg_loss")
