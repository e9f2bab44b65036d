"""MUSE: news articles or novels that a model was trained on, a part of which it has to forget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_unlearn.benchmarks.entries import TEXT, Entry
from lightning_unlearn.benchmarks.language_base import LanguageBenchmark, Protocol, Rows, located
from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.sources import read_source
from lightning_unlearn.functional.language.extraction import exact_memorization, extraction_strength
from lightning_unlearn.functional.language.membership import min_k
from lightning_unlearn.functional.language.privacy import priv_leak
from lightning_unlearn.functional.roc import auc
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.muse import MUSEDataModule
from lightning_unlearn.language.eval_logs import EvalLog, LoggedMetric, logged_rows
from lightning_unlearn.language.generation import generate_all
from lightning_unlearn.language.metrics.muse import Variant, first_tokens, knowmem, verbmem
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.token_stats import TokenStats, token_stats
from lightning_unlearn.language.tokens import TokenRow, beginning

__all__ = ["MUSEBenchmark"]

SHOTS = 10
_FILES = (
    *("raw/forget", "raw/retain1", "knowmem/forget_qa", "knowmem/forget_qa_icl", "knowmem/retain_qa"),
    *("knowmem/retain_qa_icl", "verbmem/forget", "privleak/forget", "privleak/holdout"),
)


class MUSEBenchmark(LanguageBenchmark):
    """Verbatim memorisation, knowledge and privacy leakage on news (MUSE-News) or novels (MUSE-Books).

    Args:
        path: Folder in the layout of the authors: ``raw/``, ``knowmem/``, ``verbmem/``, ``privleak/``; or the hub id.
        measured: Rows of each evaluation that are used, the first ones; the published evaluation takes all.
        variant: ``"ou"``: ROUGE with a stemmer, as open-unlearning; ``"muse"``: without, as the authors.
        max_new_tokens: Longest continuation of VerbMem; the published one has 128 tokens, and answers of KnowMem a
            quarter of it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an argument is out of range.

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, arXiv:2407.06460.
    """

    name: ClassVar[str] = "muse"
    entries: ClassVar[tuple[Entry, ...]] = TEXT

    def __init__(self, path: str, measured: int = 100, variant: Variant = "ou", max_new_tokens: int = 128) -> None:
        self.path, self.measured = located(path), at_least("measured", measured, 1)
        self.variant, self.max_new_tokens = (
            one_of("variant", variant, Variant),
            at_least("max_new_tokens", max_new_tokens, 4),
        )
        self._tables()

    def sources(self) -> list[str]:
        """The tables that are read."""
        return list(self._tables().values())

    def _tables(self) -> dict[str, str]:
        """The tables that are read, by name: files of a folder, or names on the hub."""
        if not Path(self.path).is_dir():
            return {name: f"{self.path}:{name.replace('/', ':')}" for name in _FILES}
        found = {}
        for name in _FILES:
            candidates = [Path(self.path) / f"{name}{ending}" for ending in (".json", ".jsonl", ".txt")]
            file = next((file for file in candidates if file.is_file()), None)
            if file is None:
                raise FileNotFoundError(f"There is no file {candidates[0]}, nor .jsonl or .txt. Give MUSE's folder.")
            found[name] = str(file)
        return found

    def rows(self) -> Rows:
        """The corpora to forget and to keep."""
        return {
            role: _items(self._tables()[f"raw/{name}"]) for role, name in (("forget", "forget"), ("retain", "retain1"))
        }

    def data(self, rows: Rows, protocol: Protocol, seed: int = 0) -> MUSEDataModule:
        """Corpora that are cut into rows of ``max_length`` tokens."""
        return _Corpora(rows, protocol, seed)

    def evaluate(self, module: LitCausalLM, generate: bool) -> EvalLog:
        """MUSE's triple under open-unlearning's names; VerbMem and KnowMem where answers are generated."""
        metrics = self._privacy(module)
        if generate:
            metrics["forget_verbmem_ROUGE"] = self._verbatim(module)
            for role in ("forget", "retain"):
                metrics[f"{role}_knowmem_ROUGE"] = self._knowledge(module, role)
        return EvalLog(metrics)

    def compared(self, log: EvalLog, retrained: EvalLog | None) -> dict[str, float]:
        """VerbMem, KnowMem on both sides, PrivLeak."""
        assert retrained is not None
        area, control = (part.values()["mia_min_k"] or 0.0 for part in (log, retrained))
        names = {
            "VerbMem": "forget_verbmem_ROUGE",
            "KnowMem forget": "forget_knowmem_ROUGE",
            "KnowMem retain": "retain_knowmem_ROUGE",
            "ES": "extraction_strength",
        }
        found = {column: value for column, name in names.items() if (value := log.values().get(name)) is not None}
        return {**found, "PrivLeak": priv_leak(area, control)}

    def score(self, log: EvalLog, original: EvalLog, retrained: EvalLog | None) -> float:
        """One less the distance to the retrained model's extraction strength and attack area, halved."""
        assert retrained is not None
        pairs = [
            (part.values()[name] or 0.0) for name in ("extraction_strength", "mia_min_k") for part in (log, retrained)
        ]
        return 1 - (abs(pairs[0] - pairs[1]) + abs(pairs[2] - pairs[3])) / 2

    def _read(self, name: str) -> list[Any]:
        return _items(self._tables()[name])[: self.measured]

    def _privacy(self, module: LitCausalLM) -> dict[str, LoggedMetric]:
        sets = {
            name: token_stats(module, _whole(module, self._read(f"privleak/{name}"))) for name in ("forget", "holdout")
        }
        scores = {name: torch.stack([min_k(part.log_prob) for part in parts]) for name, parts in sets.items()}
        area = float(auc(scores["holdout"], scores["forget"]))
        parts = {name: logged_rows({"score": values}, of="score") for name, values in scores.items()}
        rows = token_stats(module, [_row(module, row["prompt"], row["gt"]) for row in self._read("verbmem/forget")])
        return {
            "mia_min_k": LoggedMetric(area, parts=parts),
            "extraction_strength": _memorised(rows, extraction_strength),
            "exact_memorization": _memorised(rows, exact_memorization),
        }

    def _verbatim(self, module: LitCausalLM) -> LoggedMetric:
        rows = self._read("verbmem/forget")
        texts = _continued(module, [row["prompt"] for row in rows], self.max_new_tokens)
        truths = [first_tokens(module.tokenizer, row["gt"], self.max_new_tokens) for row in rows]
        return logged_rows({"rougeL_f1": verbmem(texts, truths, self.variant), "generation": texts}, of="rougeL_f1")

    def _knowledge(self, module: LitCausalLM, role: str) -> LoggedMetric:
        shots, rows = _items(self._tables()[f"knowmem/{role}_qa_icl"])[:SHOTS], self._read(f"knowmem/{role}_qa")
        shown = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shots)
        prompts = [f"{shown}Question: {row['question']}\nAnswer: ".rstrip() for row in rows]
        texts = _continued(module, prompts, self.max_new_tokens // 4)
        f1 = knowmem(texts, [row["answer"] for row in rows], self.variant)
        return logged_rows({"rougeL_f1": f1, "generation": texts}, of="rougeL_f1")


class _Corpora(MUSEDataModule):
    """Corpora that are at hand as rows."""

    def __init__(self, rows: Rows, protocol: Protocol, seed: int) -> None:
        super().__init__(max_length=protocol.max_length, batch_size=protocol.batch_size, seed=seed)
        self.corpora = rows

    def read_rows(self) -> Rows:
        return self.corpora

    def _tokenize(self, name: str, rows: list[dict[str, Any]]) -> list[TokenRow]:
        self.bos = self.prompt.tokenizer.bos_token_id is not None
        return super()._tokenize(name, rows)


def _items(source: str) -> list[Any]:
    """Rows of a table; a text file, or an array of texts, is rows of texts."""
    path = Path(source)
    if path.suffix == ".txt":
        return [{"text": path.read_text(encoding="utf-8-sig")}]
    return [{"text": row} if isinstance(row, str) else row for row in read_source(source)]


def _row(module: LitCausalLM, prompt: str, text: str) -> TokenRow:
    tokenizer = module.tokenizer
    start = beginning(tokenizer) + tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    return TokenRow(start, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _whole(module: LitCausalLM, items: list[Any]) -> list[TokenRow]:
    """Texts without a prompt."""
    return [_row(module, "", item["text"]) for item in items]


def _memorised(rows: Sequence[TokenStats], measure: Any) -> LoggedMetric:
    values: Tensor = torch.stack([measure(part.hit) for part in rows])
    return logged_rows({"score": values}, of="score")


def _continued(module: LitCausalLM, prompts: list[str], tokens: int) -> list[str]:
    """Greedy continuations of texts as they are."""
    ids = [_row(module, prompt, "").prompt for prompt in prompts]
    with torch.no_grad(), evaluating(module):
        return generate_all(module.model, PromptFormat(module.tokenizer, prompt_format="{question}"), ids, tokens)
