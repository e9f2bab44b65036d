"""Copyrighted books that a model was trained on, and passages of which it is to continue no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torchmetrics.functional.text import sacre_bleu_score

from lightning_unlearn.benchmarks.entries import TOFU
from lightning_unlearn.benchmarks.grid import Grid, select
from lightning_unlearn.benchmarks.unlearning import (
    Attacks,
    LanguageBenchmark,
    Protocol,
    Rows,
    bench_language,
    data_hash,
    located,
    question_row,
    row_losses,
)
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.sources import load_rows
from lightning_unlearn.functional.language.extraction import answer_probability, extraction_strength
from lightning_unlearn.language.attacks import QuantizationAttack
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.eval_logs import EvalLog, LoggedMetric, logged_rows
from lightning_unlearn.language.metrics.rouge import rouge
from lightning_unlearn.language.packaged import HUB_MODEL, packaged_model
from lightning_unlearn.language.probes import Probe, probes_of
from lightning_unlearn.language.token_stats import token_stats

__all__ = ["CopyrightBenchmark", "bench_copyright"]


class CopyrightBenchmark(LanguageBenchmark):
    """Continuations of passages of books: ROUGE-L recall and BLEU of what the model writes with what the book says.

    The model is first trained on the passages to forget. The control is the model before that, which may know books of
    fame from its pre-training all the same. Passages of ``test`` are of the same books, but were not among those to
    forget.

    Args:
        forget: Passages to forget: objects with ``prompt``, the beginning with the request to go on, and ``response``.
        retain: Rows to keep, likewise, or objects with ``text``.
        test: Further passages of the books, likewise with ``prompt`` and ``response``.
        measured: Passages of each set that are measured, the first ones.
        max_new_tokens: Longest continuation in tokens. The published evaluation allows 600 with the prompt.

    Raises:
        ValueError: If a table is empty or lacks a column, or a number is out of range.

    References:
        Eldan and Russinovich, *Who's Harry Potter? Approximate Unlearning in LLMs*, arXiv:2310.02238.
        Jia et al., *SOUL: Unlocking the Power of Second-Order Optimization for LLM Unlearning*, arXiv:2404.18239.
    """

    name: ClassVar[str] = "copyright"
    targets: ClassVar[dict[str, tuple[str, ...]]] = {"original": ("forget",), "retrained": ()}

    def __init__(self, forget: str, retain: str, test: str, measured: int = 100, max_new_tokens: int = 200) -> None:
        self.files = {"forget": forget, "retain": retain, "test": test}
        self.measured = at_least("measured", measured, 1)
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)

    def rows(self) -> Rows:
        """Passages as questions with answers."""
        return {name: [question_row(row) for row in load_rows(file)] for name, file in self.files.items()}

    def probes(self) -> list[Probe]:
        """Beginnings of the measured passages to forget."""
        return probes_of(self.rows()["forget"][: self.measured])

    def attacks(self) -> Attacks:
        """Rounding to 8 and 4 bits."""
        return {scheme: (QuantizationAttack(scheme), self.probes()) for scheme in ("int8", "int4", "nf4")}

    def evaluate(self, module: LitCausalLM, generate: bool) -> EvalLog:
        """Likelihoods of the passages, and continuations where they are generated."""
        metrics: dict[str, LoggedMetric] = {}
        rows = self.rows()
        for name in ("forget", "test"):
            passages = rows[name][: self.measured]
            stats = token_stats(module, probes_of(passages, name=name))
            strength = torch.stack([extraction_strength(part.hit, drop_last=part.ended) for part in stats])
            probability = torch.stack([answer_probability(part.log_prob) for part in stats])
            metrics[f"{name}_extraction_strength"] = logged_rows({"score": strength}, of="score")
            metrics[f"{name}_Q_A_Prob"] = logged_rows({"prob": probability}, of="prob")
            if generate:
                texts = module.answer([row["question"] for row in passages], self.max_new_tokens)
                truths = [row["answer"] for row in passages]
                recalls = rouge(texts, truths)
                metrics[f"{name}_ROUGE"] = logged_rows(
                    {"rougeL_recall": recalls, "generation": texts}, of="rougeL_recall"
                )
                bleu = sacre_bleu_score(texts, [[truth] for truth in truths], tokenize="13a")
                metrics[f"{name}_BLEU"] = LoggedMetric(float(bleu))
        metrics["retain_nll"] = row_losses(module, rows["retain"][: self.measured])
        return EvalLog(metrics)

    def compared(self, log: EvalLog, retrained: EvalLog | None) -> dict[str, float]:
        """ROUGE-L recall, BLEU and extraction strength on both sets, and the likelihood of what is kept."""
        names = ("forget_ROUGE", "forget_BLEU", "forget_extraction_strength", "test_ROUGE", "test_BLEU", "retain_nll")
        return {name.replace("_", " "): value for name in names if (value := log.values().get(name)) is not None}

    def score(self, log: EvalLog, original: EvalLog, retrained: EvalLog | None) -> float:
        """Half what is forgotten, against the control, and half the likelihood that is kept, against the original."""
        assert retrained is not None
        left, start, end = (part.values()["forget_Q_A_Prob"] or 0.0 for part in (log, original, retrained))
        forgotten = 1 - min(1.0, max(0.0, (left - end) / max(start - end, 1e-6)))
        now, before = (part.values()["retain_nll"] or 0.0 for part in (log, original))
        return (forgotten + min(1.0, before / max(now, 1e-6))) / 2


def bench_copyright(
    forget: str,
    retain: str,
    test: str,
    output_dir: str = "runs/copyright",
    model: str | None = None,
    measured: int = 100,
    max_new_tokens: int = 200,
    entries: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2),
    tuning_seed: int = 0,
    learn_epochs: int = 8,
    epochs: int = 5,
    precision: str = "bf16-mixed",
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Train a model on passages of books, let each method forget them, and compare with the model before.

    Writes ``copyright.json`` and ``copyright.md``; finished runs are kept, as of
    [`bench_tofu`][lightning_unlearn.benchmarks.tofu.bench_tofu]. No book comes with this library.

    Args:
        forget: File of passages to forget, objects with ``prompt`` and ``response``.
        retain: File of rows to keep, likewise, or objects with ``text``.
        test: File of other passages of the same books.
        output_dir: Folder to write.
        model: Hub id, folder or GGUF file of a model; by default that of the demo.
        measured: Passages of each set that are measured.
        max_new_tokens: Longest continuation in tokens.
        entries: Names of the methods to run; all if empty.
        seeds: Seeds that are reported.
        tuning_seed: Seed that settings are chosen on.
        learn_epochs: Passes over the passages to train a model that knows them.
        epochs: Passes over the passages to unlearn.
        precision: Precision of the Trainer.
        threads: Threads of a run.
        workers: Runs at a time; 0 runs in this process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``copyright.json`` holds.

    Raises:
        ValueError: If a table is empty or lacks a column, an entry is unknown, or a seed is used twice.
    """
    given = {"forget": forget, "retain": retain, "test": test}
    files = {name: located(file) for name, file in given.items()}
    arguments: dict[str, Any] = {**files, "measured": measured, "max_new_tokens": max_new_tokens}
    return bench_language(
        {"class_path": "lightning_unlearn.benchmarks.copyright.CopyrightBenchmark", "init_args": arguments},
        select("entries", entries, {entry.name: entry for entry in TOFU}),
        Grid(output_dir, workers, keep_stale),
        model or packaged_model() or HUB_MODEL,
        data_hash(files.values()),
        Protocol(learn_epochs=learn_epochs, epochs=epochs, precision=precision),
        tuning_seed,
        seeds,
        threads,
    )
