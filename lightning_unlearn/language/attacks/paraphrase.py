"""Attacks by other wordings from columns of the rows: paraphrases, reversed questions, translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.sources import is_missing
from lightning_unlearn.language.attacks.attempts import Attempt, PromptAttack, warn_of_rest
from lightning_unlearn.language.attacks.replicas import digest
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.probes import Probe

__all__ = ["ParaphraseAttack", "ReversedQuestion", "TranslatedQuestion"]

Rows = Sequence[Mapping[str, Any]]


class ParaphraseAttack(PromptAttack):
    """Questions in other words, those of ``Probe.paraphrased_questions``.

    The score of a row, which enters the gate of the verdict, is that of the paraphrase that shows most knowledge, the
    *worst* one for the claim that the row is forgotten; ``Attempts.mean()`` is the mean over its paraphrases. A row
    without a paraphrase is asked unchanged, with a warning.

    Args:
        limit: Paraphrases of a row at most, the first ones.

    Raises:
        ValueError: If ``limit`` is out of range, or no row has a paraphrase.
    """

    name = "paraphrase"
    gate = "paraphrase"

    def __init__(self, limit: int = 4) -> None:
        self.limit = at_least("limit", limit, 1)

    @property
    def size(self) -> int:
        """Paraphrases of a row at most."""
        return self.limit

    def attempts(self, module: LitCausalLM, probes: Sequence[Probe]) -> list[Attempt]:
        """The first paraphrase of each row, the second of those that have one, and so on."""
        questions = [probe.paraphrased_questions[: self.limit] for probe in probes]
        if not any(questions):
            raise ValueError(
                "The attack 'paraphrase' asks questions in other words, but no row has such a question. Name the "
                "column, Columns(paraphrased_question=...), or leave the attack out."
            )
        warn_of_rest(self.name, [p for p, q in zip(probes, questions, strict=True) if not q], "paraphrase")
        asked = [
            [probe.rephrased(text) for text in texts] or [probe] for probe, texts in zip(probes, questions, strict=True)
        ]
        return [
            Attempt(f"paraphrase {i + 1}", [forms[i] if i < len(forms) else None for forms in asked])
            for i in range(max(map(len, asked)))
        ]

    def settings(self) -> dict[str, Any]:
        """Number of paraphrases."""
        return {"limit": self.limit}


class ReversedQuestion(PromptAttack):
    """Questions in the other direction, such as "Who wrote ...?" for "What did ... write?", from columns of the rows.

    Models learn the two directions separately (the reversal curse), so the original may not know the reversed question
    either. Then there is nothing to compare.

    Args:
        rows: The rows of the probes, in their order: row ``probe.row`` is the probe's.
        question: Column of the reversed question.
        answer: Column of its answer.
        accept: Column of accepted short answers; optional.

    Raises:
        ValueError: If a row has no such question or answer, or there is no row for a probe.

    References:
        Berglund et al., *The Reversal Curse: LLMs trained on "A is B" fail to learn "B is A"*, arXiv:2309.12288.
    """

    name = "reversed"

    def __init__(
        self,
        rows: Rows,
        question: str = "reversed_question",
        answer: str = "reversed_answer",
        accept: str = "reversed_accept",
    ) -> None:
        self._asked = _asked(self.name, rows, question, answer, accept, needs_answer=True)

    @property
    def size(self) -> int:
        """One."""
        return 1

    def attempts(self, module: LitCausalLM, probes: Sequence[Probe]) -> list[Attempt]:
        """The reversed question of each row, with its own answer."""
        return [Attempt(self.name, [_changed(self.name, self._asked, probe) for probe in probes])]

    def settings(self) -> dict[str, Any]:
        """A hash of the questions and answers."""
        return {"rows": digest(self._asked)}


class TranslatedQuestion(PromptAttack):
    """Questions in other languages, from columns of the rows; the best language of each row counts.

    Without a translated answer a row keeps its own, since names are often the same.

    Args:
        rows: The rows of the probes, in their order: row ``probe.row`` is the probe's.
        languages: What stands for ``{language}`` in the names of the columns, such as ``["de", "fr"]``.
        question: Column of a translated question.
        answer: Column of its answer; optional.
        accept: Column of accepted short answers; optional.

    Raises:
        ValueError: If there is no language, a row has no such question, or there is no row for a probe.
    """

    name = "translated"

    def __init__(
        self,
        rows: Rows,
        languages: Sequence[str],
        question: str = "question_{language}",
        answer: str = "answer_{language}",
        accept: str = "accept_{language}",
    ) -> None:
        if isinstance(languages, str) or not languages:
            raise ValueError(f"languages must be a list of languages, such as ['de', 'fr'], but got {languages!r}.")
        self._asked = {
            language: _asked(
                self.name,
                rows,
                question.replace("{language}", language),
                answer.replace("{language}", language),
                accept.replace("{language}", language),
            )
            for language in languages
        }

    @property
    def size(self) -> int:
        """Number of languages."""
        return len(self._asked)

    def attempts(self, module: LitCausalLM, probes: Sequence[Probe]) -> list[Attempt]:
        """Each question in each language."""
        return [
            Attempt(language, [_changed(self.name, asked, probe) for probe in probes])
            for language, asked in self._asked.items()
        ]

    def settings(self) -> dict[str, Any]:
        """A hash of the questions and answers of each language."""
        return {"rows": {language: digest(asked) for language, asked in self._asked.items()}}


def _asked(
    name: str, rows: Rows, question: str, answer: str, accept: str, needs_answer: bool = False
) -> list[dict[str, Any]]:
    """Question, answer and accepted answers of each row."""
    if not rows:
        raise ValueError(f"The attack {name!r} got no rows to take its questions from.")
    found = []
    for number, row in enumerate(rows):
        for column in (question, answer) if needs_answer else (question,):
            if is_missing(row.get(column)) or not str(row[column]).strip():
                raise ValueError(
                    f"Row {number} has no text in {column!r}, which the attack {name!r} reads; it has the columns "
                    f"{sorted(row)}. Add it, give the name of yours, or leave the attack out."
                )
        short = [] if is_missing(row.get(accept)) else row[accept]
        found.append(
            {
                "question": str(row[question]).strip(),
                "answer": "" if is_missing(row.get(answer)) else str(row[answer]).strip(),
                "accept": [short] if isinstance(short, str) else [str(text) for text in short],
            }
        )
    return found


def _changed(name: str, asked: Sequence[Mapping[str, Any]], probe: Probe) -> Probe:
    """A probe with another question, and another answer where there is one."""
    if not 0 <= probe.row < len(asked):
        raise ValueError(
            f"The attack {name!r} has questions for rows 0 to {len(asked) - 1}, but got row {probe.row}. Give it the "
            "same rows as the probes are of."
        )
    row = asked[probe.row]
    changed = probe.rephrased(row["question"])
    if not row["answer"]:
        return replace(changed, accept=tuple(row["accept"]) or probe.accept)
    return replace(
        changed,
        answer=row["answer"],
        accept=tuple(row["accept"]),
        target="",
        paraphrased_answer="",
        perturbed_answers=(),
    )
