"""Copyrighted books: passages that a model was trained on and should no longer be able to continue."""

from __future__ import annotations

from typing import ClassVar

import torch
from torchmetrics.functional.text import sacre_bleu_score

from lightning_unlearn.benchmarks.language_base import (
    Attacks,
    LanguageBenchmark,
    Rows,
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
from lightning_unlearn.language.probes import Probe, probes_of
from lightning_unlearn.language.token_stats import token_stats

__all__ = ["CopyrightBenchmark"]


class CopyrightBenchmark(LanguageBenchmark):
    """Continuations of passages of books: ROUGE-L recall and BLEU between the model's text and that of the book.

    The model is first trained on the passages to forget. The control is the model before this training, which may know
    famous books from its pre-training anyway. Passages of ``test`` are from the same books, but were not among those to
    forget.

    Args:
        forget: Passages to forget: objects with ``prompt``, a beginning and the request to continue it, and
            ``response``.
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
        self.forget, self.retain, self.test = located(forget), located(retain), located(test)
        self.measured = at_least("measured", measured, 1)
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)

    def sources(self) -> list[str]:
        """The three files."""
        return [self.forget, self.retain, self.test]

    def rows(self) -> Rows:
        """Passages as questions with answers."""
        files = zip(("forget", "retain", "test"), self.sources(), strict=True)
        return {name: [question_row(row) for row in load_rows(file)] for name, file in files}

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
