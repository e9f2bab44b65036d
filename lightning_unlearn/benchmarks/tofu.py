"""TOFU: fictitious authors that a model is taught, some of whom have to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_unlearn.benchmarks.language_base import Attacks, LanguageBenchmark, Rows, evenly, located
from lightning_unlearn.core.checks import at_least, between
from lightning_unlearn.core.sources import load_rows
from lightning_unlearn.functional.language.extraction import (
    answer_probability,
    exact_memorization,
    extraction_strength,
)
from lightning_unlearn.functional.language.truth_ratio import truth_ratio, truth_ratio_score
from lightning_unlearn.language.attacks import (
    LanguageRelearning,
    QuantizationAttack,
    RelearningRecipe,
    RelearningRows,
)
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.eval_logs import UTILITY_METRICS, EvalLog, LoggedMetric, logged_rows
from lightning_unlearn.language.metrics.forget_quality import forget_quality
from lightning_unlearn.language.metrics.model_utility import harmonic_mean
from lightning_unlearn.language.metrics.probability import mean_log_prob, mean_log_probs, normalised_probability
from lightning_unlearn.language.metrics.rouge import rouge
from lightning_unlearn.language.packaged import FACTS_FOLDER
from lightning_unlearn.language.probes import Probe, probes_of
from lightning_unlearn.language.scored_rows import Kind
from lightning_unlearn.language.token_stats import TokenStats, token_stats

__all__ = ["TOFUBenchmark"]

QUESTIONS = 20
"""Rows of an author."""
RELEARNING = RelearningRecipe(lr=1e-4, steps=(0, 5, 10))
"""Settings of relearning, for a model of less than a billion weights."""
PERTURBED_RETAIN = 20
"""Authors at the beginning whose rows have perturbed answers."""


class TOFUBenchmark(LanguageBenchmark):
    """A part of TOFU of any size: the first authors are kept, and the last ones are forgotten.

    The rows are those of the data set. Authors to keep are its first ones, whose rows have perturbed answers; authors
    to forget are its last ones, as in the published splits. 180 and 20 authors make ``forget10``.

    Args:
        path: A folder with ``full.json``, ``forget10_perturbed.json``, ``retain_perturbed.json``,
            ``real_authors_perturbed.json`` and ``world_facts_perturbed.json``, or the data set's hub id.
        retained: Authors to keep.
        forgotten: Authors to forget, at most 20.
        measured: Rows of each set other than the forget set that are measured, spread evenly.
        max_new_tokens: Longest generated answer. The published evaluation takes 200.

    Raises:
        ValueError: If a number is out of range.
        FileNotFoundError: If a file is missing.

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """

    name: ClassVar[str] = "tofu"

    def __init__(
        self, path: str, retained: int = 18, forgotten: int = 2, measured: int = 60, max_new_tokens: int = 64
    ) -> None:
        self.path = located(path)
        self.retained, self.forgotten = at_least("retained", retained, 1), between("forgotten", forgotten, 1, 20)
        self.measured = at_least("measured", measured, 1)
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)
        if retained + forgotten > 200:
            raise ValueError(f"TOFU has 200 authors, but got retained={retained} and forgotten={forgotten}.")
        missing = [file for file in self.sources() if Path(self.path).is_dir() and not Path(file).is_file()]
        if missing:
            raise FileNotFoundError(f"There is no file {missing[0]}. Give the folder of TOFU's JSON files.")

    def sources(self) -> list[str]:
        """The tables that are read: files of a folder, or names on the hub."""
        names = ("full", "forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
        if Path(self.path).is_dir():
            return [str(Path(self.path) / f"{name}.json") for name in names]
        return [f"{self.path}:{name}:train" for name in names]

    def rows(self) -> Rows:
        """Rows by set; those to forget and the measured ones have perturbed answers."""
        full, forget, retain, authors, facts = map(load_rows, self.sources())
        forget, kept = forget[-self.forgotten * QUESTIONS :], full[: self.retained * QUESTIONS]
        known = retain[: min(self.retained, PERTURBED_RETAIN) * QUESTIONS]
        return {
            "forget": forget,
            "retain": kept,
            "retain_measured": evenly(known, self.measured),
            "real_authors": evenly(authors, self.measured),
            "world_facts": evenly(facts, self.measured),
        }

    def probes(self) -> list[Probe]:
        """Questions to the forget rows, by author."""
        rows = [{**row, "entity": f"author {i // QUESTIONS}"} for i, row in enumerate(self.rows()["forget"])]
        return probes_of(rows)

    def attacks(self) -> Attacks:
        """Rounding to 8 and 4 bits, and relearning: from a fifth of the forget rows, and from unrelated facts."""
        probes = self.probes()
        split = RelearningRows.tofu(probes, per_author=QUESTIONS)
        taught = {
            "in_domain": (split.taught, split.held_out),
            "far": (probes_of(load_rows(FACTS_FOLDER / "general.jsonl")), probes),
        }
        found: Attacks = {scheme: (QuantizationAttack(scheme), probes) for scheme in ("int8", "int4", "nf4")}
        for kind, (rows, scored) in taught.items():
            found[f"relearning, {kind}"] = LanguageRelearning(rows, kind, RELEARNING), scored  # type: ignore[arg-type]
        return found

    def evaluate(self, module: LitCausalLM, generate: bool) -> EvalLog:
        """All metrics of TOFU under open-unlearning's names.

        Without generated answers there is no truth ratio of the forget set either: settings are chosen without it.
        """
        rows = self.rows()
        sets = {"forget": "forget", "retain": "retain_measured", "ra": "real_authors", "wf": "world_facts"}
        metrics = self._forget(module, rows["forget"], generate)
        for short in ("retain", "ra", "wf"):
            metrics |= _kept(module, rows[sets[short]], short)
        if generate:
            metrics |= {f"{short}_Q_A_ROUGE": self._rouge(module, rows[name]) for short, name in sets.items()}
            metrics["model_utility"] = LoggedMetric(_utility(metrics))
        return EvalLog(metrics)

    def compared(self, log: EvalLog, retrained: EvalLog | None) -> dict[str, float]:
        """The columns of the table; forget quality with its statistic D."""
        assert retrained is not None
        quality = forget_quality(*(part.metrics["forget_Truth_Ratio"].column("ratio") for part in (log, retrained)))
        assert quality is not None
        names = {
            "ES": "extraction_strength",
            "EM": "exact_memorization",
            "forget prob.": "forget_Q_A_Prob",
            "forget ROUGE": "forget_Q_A_ROUGE",
            "forget TR": "forget_Truth_Ratio",
            "retain prob.": "retain_Q_A_Prob",
            "retain ROUGE": "retain_Q_A_ROUGE",
            "MU": "model_utility",
        }
        values = log.values()
        return {
            "FQ": quality.p_value,
            "D": quality.statistic,
            **{c: v for c, n in names.items() if (v := values[n]) is not None},
        }

    def score(self, log: EvalLog, original: EvalLog, retrained: EvalLog | None) -> float:
        """Half what is forgotten, half what is kept, each relative to the retrained model.

        Forgotten is one less the share of the original's extraction strength that is left above the retrained model's;
        kept is the harmonic mean of the columns of model utility that are read off likelihoods, relative to the
        retrained model's.
        """
        assert retrained is not None
        left, start, end = (part.values()["extraction_strength"] or 0.0 for part in (log, original, retrained))
        forgotten = 1 - min(1.0, max(0.0, (left - end) / max(start - end, 1e-6)))
        kept = min(1.0, _utility(log.metrics, False) / max(_utility(retrained.metrics, False), 1e-6))
        return (forgotten + kept) / 2

    def _forget(self, module: LitCausalLM, rows: list[dict[str, Any]], ratios: bool) -> dict[str, LoggedMetric]:
        stats = _by_row(module, rows, ("answer", "paraphrased", "perturbed") if ratios else ("answer",))
        own = [row["answer"][0] for row in stats]
        strength = torch.stack([extraction_strength(part.hit, drop_last=part.ended) for part in own])
        memory = torch.stack([exact_memorization(part.hit, drop_last=part.ended) for part in own])
        found = {
            "forget_Q_A_Prob": logged_rows({"prob": _probabilities(own)}, of="prob"),
            "extraction_strength": logged_rows({"score": strength}, of="score"),
            "exact_memorization": logged_rows({"score": memory}, of="score"),
        }
        if ratios:
            found["forget_Truth_Ratio"] = _ratios(*_likelihoods(stats)[1:], "forget")
        return found

    def _rouge(self, module: LitCausalLM, rows: list[dict[str, Any]]) -> LoggedMetric:
        texts = module.answer([row["question"] for row in rows], self.max_new_tokens)
        recalls = rouge(texts, [row["answer"] for row in rows])
        return logged_rows({"rougeL_recall": recalls, "generation": texts}, of="rougeL_recall")


def _kept(module: LitCausalLM, rows: list[dict[str, Any]], short: str) -> dict[str, LoggedMetric]:
    stats = _by_row(module, rows)
    answers, right, wrong = _likelihoods(stats)
    found = {f"{short}_Truth_Ratio": _ratios(right, wrong, "retain")}
    if short == "retain":
        own = _probabilities([row["answer"][0] for row in stats])
        return {**found, "retain_Q_A_Prob": logged_rows({"prob": own}, of="prob")}
    normalised = normalised_probability(answers.exp(), wrong.exp())
    return {**found, f"{short}_Q_A_Prob_normalised": logged_rows({"prob": normalised}, of="prob")}


def _ratios(right: Tensor, wrong: Tensor, side: Literal["forget", "retain"]) -> LoggedMetric:
    scores, ratios = truth_ratio_score(right, wrong, side), truth_ratio(right, wrong)
    return logged_rows({"score": scores, "ratio": ratios}, of="score")


def _by_row(
    module: LitCausalLM, rows: list[dict[str, Any]], kinds: Sequence[Kind] = ("answer", "paraphrased", "perturbed")
) -> list[dict[str, list[TokenStats]]]:
    """Statistics of each row's answers, by kind."""
    found: list[dict[str, list[TokenStats]]] = [{} for _ in rows]
    for stats in token_stats(module, probes_of(rows), kinds):
        found[stats.index].setdefault(stats.kind, []).append(stats)
    return found


def _likelihoods(stats: list[dict[str, list[TokenStats]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log-probabilities of the answers, of right ones in other words (where there are such), and of wrong ones."""
    answers = mean_log_prob([row["answer"][0].log_prob for row in stats])
    right = mean_log_prob([row.get("paraphrased", row["answer"])[0].log_prob for row in stats])
    return answers, right, mean_log_probs([[part.log_prob for part in row["perturbed"]] for row in stats])


def _probabilities(stats: list[TokenStats]) -> Tensor:
    return torch.stack([answer_probability(part.log_prob) for part in stats])


def _utility(metrics: Mapping[str, LoggedMetric], answers: bool = True) -> float:
    """Model utility; without the columns of generated answers, a part of it."""
    names = [name for name in UTILITY_METRICS if answers or not name.endswith("ROUGE")]
    return harmonic_mean(metrics[name].value or 0.0 for name in names)
