"""Token sequences whose likelihoods are read: probes with each of their answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from lightning_unlearn.language.chat import Span, Written
from lightning_unlearn.language.matching import separates_words
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.tokens import TokenRow, beginning, encode, encode_prompts

__all__ = ["Kind", "ScoredRow", "prompts_of", "scored_rows"]

Kind = Literal["answer", "paraphrased", "perturbed"]


class ScoredRow(NamedTuple):
    """A sequence with the key of its record.

    Args:
        tokens: Its tokens; those of the answer are scored.
        row: Number of the row.
        kind: Which of the row's answers it is.
        choice: Number of the perturbed answer.
    """

    tokens: TokenRow
    row: int
    kind: Kind = "answer"
    choice: int = 0

    def sequence(self) -> list[int]:
        """All its tokens."""
        return [*self.tokens.prompt, *self.tokens.answer]

    def labelled(self) -> list[int]:
        """Positions of the labels in the sequence; no token predicts the first one."""
        start = len(self.tokens.prompt)
        gaps = {i for first, end in self.tokens.unlabelled for i in range(first, end)}
        return [start + i for i in range(len(self.tokens.answer)) if i not in gaps and start + i > 0]


def scored_rows(prompt_format: PromptFormat, probes: Sequence[Probe], kinds: Collection[Kind]) -> list[ScoredRow]:
    """Each probe with its answers of some kinds; one that it does not have is left out.

    Args:
        prompt_format: How questions are asked.
        probes: The probes.
        kinds: ``"answer"``: the answer, or the target in it; ``"paraphrased"``, ``"perturbed"``: those answers, whole.

    Raises:
        ValueError: If a target is not in its answer.
    """
    found: list[tuple[Probe, Kind, int, str, str]] = []
    for probe in probes:
        if probe.target and probe.target not in probe.answer:
            raise ValueError(
                f"Row {probe.row} has the target {probe.target!r}, which is not in its answer {probe.answer!r}. Give a "
                "part of the answer, or remove the target."
            )
        if "answer" in kinds:
            found.append((probe, "answer", 0, probe.answer, probe.target))
        if "paraphrased" in kinds and probe.paraphrased_answer:
            found.append((probe, "paraphrased", 0, probe.paraphrased_answer, ""))
        if "perturbed" in kinds:
            found += [(probe, "perturbed", i, text, "") for i, text in enumerate(probe.perturbed_answers)]
    asked = [part for part in found if not part[0].is_text]
    last = replace(prompt_format, turns="last")
    conversations = [
        last.conversation(last.messages(probe.question), text, target or None) for probe, _, _, text, target in asked
    ]
    continued = [part for part in found if part[0].is_text]
    tokens = iter(last.rows(conversations))
    texts = iter(_continuations(prompt_format.tokenizer, continued))
    return [
        ScoredRow(next(texts) if probe.is_text else next(tokens), probe.row, kind, choice)
        for probe, kind, choice, _, _ in found
    ]


def prompts_of(prompt_format: PromptFormat, probes: Sequence[Probe]) -> list[list[int]]:
    """Token ids of each probe up to where its answer begins; the beginning of a text is taken as it is."""
    tokenizer = prompt_format.tokenizer
    asked = iter(prompt_format.prompts([probe.question for probe in probes if not probe.is_text]))
    texts = [_text(probe).rstrip() for probe in probes if probe.is_text]
    continued = iter(encode_prompts(tokenizer, texts, beginning(tokenizer) if texts else []))
    return [next(continued) if probe.is_text else next(asked) for probe in probes]


def _text(probe: Probe) -> str:
    """The beginning of a plain text."""
    if not isinstance(probe.question, str):
        raise ValueError(f"Row {probe.row} is a plain text, but its beginning is given as messages. Give a string.")
    return probe.question


def _continuations(tokenizer: Any, parts: Sequence[tuple[Probe, Kind, int, str, str]]) -> list[TokenRow]:
    written = []
    for probe, _, _, answer, target in parts:
        beginning_, end = _text(probe), answer.find(target) + len(target) if target else len(answer)
        joint = " " if separates_words(beginning_, answer) else ""
        text = beginning_ + joint + answer[:end]
        start = len(beginning_) + (len(joint) + answer.find(target) if target else 0)
        start = len(text[:start].rstrip())
        first = start + len(text[start:]) - len(text[start:].lstrip())
        written.append(Written(text, [Span(start, first, len(text))], open=False))
    return encode(tokenizer, written, beginning(tokenizer), None) if written else []
