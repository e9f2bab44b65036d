"""Scorer of a model's knowledge, by likelihoods of the right answers and by generated answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.distributed import Replica, gather_objects, replica
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.functional.language.extraction import answer_probability, extraction_strength
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.continuation import Change
from lightning_unlearn.language.generation import generate_all, generate_changed
from lightning_unlearn.language.knowledge import Knowledge
from lightning_unlearn.language.matching import Match, matcher, word_recall
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.scored_rows import prompts_of
from lightning_unlearn.language.token_stats import MAX_TOKENS, TokenStats, format_of, token_stats

__all__ = ["AnswersOnly", "KnowledgeScorer"]

Strength = Literal["extraction_strength", "probability"]

T = TypeVar("T")

_SHORT = 4  # words
_CHANGED = 128  # answers of changed models that are generated together, at least: few prompts have many of them


class KnowledgeScorer:
    """Measures what a model knows of probes: a likelihood score and a score of greedy answers, both in [0, 1].

    Args:
        strength: Score of the likelihood of the answer, or of the target in it. ``"extraction_strength"``, the strict
            one: the share at the end of the answer that the model completes greedily; ``"probability"``: its
            probability per token.
        match: When an answer that the model gives is right. ``"words"``: it contains an accepted answer as whole words,
            in any case; an accepted answer of more than four words, which hardly any model gives word for word, counts
            by the share of its words that the answer has in their order (ROUGE-L recall). ``"exact"``: it is an
            accepted answer. Or a function ``(text, accepted)`` that returns a truth value or a share.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers generated together.
        max_tokens: Largest batch of the forward passes, in tokens.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> KnowledgeScorer(max_new_tokens=32).settings()["strength"]
        'extraction_strength'
    """

    def __init__(
        self,
        strength: Strength = "extraction_strength",
        match: Match | Callable[[str, str], bool | float] = "words",
        max_new_tokens: int = 64,
        batch_size: int = 64,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self.strength = one_of("strength", strength, Strength)
        self.match = match if callable(match) else one_of("match", match, Match)
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.max_tokens = at_least("max_tokens", max_tokens, 1)

    def __call__(self, module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
        """Measure a model; processes of a distributed run share the probes, and each returns all scores.

        Args:
            module: The model, on its device.
            probes: The questions, each with its answer.

        Raises:
            ValueError: If there is no probe, or an answer has no token to score.
        """
        if not probes:
            raise ValueError("There is no probe to score. Give at least one.")
        prompt_format = format_of(module)
        strength = self.strengths(module, probes, prompt_format)
        answers = self.answers(module, probes, prompt_format)
        matched = [self.marked(probe, text) for probe, text in zip(probes, answers, strict=True)]
        return Knowledge(strength, torch.tensor(matched), [[text] for text in answers])

    def settings(self) -> dict[str, Any]:
        """Everything that the scores depend on, as JSON values."""
        return {
            "strength": self.strength,
            "match": self.match if isinstance(self.match, str) else getattr(self.match, "__name__", repr(self.match)),
            "max_new_tokens": self.max_new_tokens,
        }

    def strengths(
        self, module: LitCausalLM, probes: Sequence[Probe], prompt_format: PromptFormat | None = None
    ) -> Tensor:
        """The score of likelihood of each probe, shape ``(N,)``, fp32."""
        stats = token_stats(module, probes, "answer", self.max_tokens, prompt_format=prompt_format)
        if stats.skipped:
            missing = sorted({probe.row for probe in probes} - {part.index for part in stats})
            raise ValueError(
                f"The answers to the rows {missing[:10]} have no token to score: nothing predicts a first token. "
                "Give a text of two tokens or more, or remove the row."
            )
        return torch.stack([self._strength(part) for part in stats]).float()

    def answers(
        self, module: LitCausalLM, probes: Sequence[Probe], prompt_format: PromptFormat | None = None
    ) -> list[str]:
        """The greedy answer to each probe; a plain text is continued as it is."""
        prompt_format = format_of(module, prompt_format)

        def run(prompts: list[list[int]]) -> list[str]:
            return generate_all(module.model, prompt_format, prompts, self.max_new_tokens, self.batch_size)

        return self._shared(module, prompts_of(prompt_format, probes), run)

    def answers_under(self, module: LitCausalLM, probes: Sequence[Probe], changes: Sequence[Change]) -> list[list[str]]:
        """The greedy answers to the probes when the model has read them under changes, a list for each change.

        Args:
            module: The model.
            probes: The probes.
            changes: Changes of the model that do nothing to the tokens behind a prompt.
        """
        prompt_format = format_of(module)

        def run(prompts: list[list[int]]) -> list[tuple[str, ...]]:
            size = max(self.batch_size, _CHANGED)
            found = generate_changed(module.model, prompt_format, prompts, self.max_new_tokens, changes, size)
            return list(zip(*found, strict=True))

        return [
            list(texts) for texts in zip(*self._shared(module, prompts_of(prompt_format, probes), run), strict=True)
        ]

    def marked(self, probe: Probe, text: str) -> float:
        """Correctness of an answer in [0, 1], against the best accepted answer."""
        accepted = probe.accept or (probe.target or probe.answer,)
        return max(self._matches(text, short) for short in accepted)

    @staticmethod
    def _shared(module: LitCausalLM, prompts: list[list[int]], run: Callable[[list[list[int]]], list[T]]) -> list[T]:
        """What is generated for each prompt; processes that hold the whole model share the prompts."""
        sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        share = Replica(0, 1) if sharded else replica(module._trainer)
        with evaluating(module):
            own = run(prompts[share.rank :: share.total])
        by_replica = dict(gather_objects((share.rank, own)))
        return [by_replica[i % share.total][i // share.total] for i in range(len(prompts))]

    def _matches(self, text: str, accepted: str) -> float:
        if self.match == "words" and len(accepted.split()) > _SHORT:
            return word_recall(text, accepted)
        matches = self.match if callable(self.match) else matcher(self.match)
        return float(matches(text, accepted))

    def _strength(self, part: TokenStats) -> Tensor:
        if self.strength == "probability":
            return answer_probability(part.log_prob)
        return extraction_strength(part.hit, drop_last=part.ended)


class AnswersOnly:
    """A scorer without likelihoods, which generates answers under several changes of a model together.

    Args:
        scorer: Answers, and marks answers.
    """

    def __init__(self, scorer: KnowledgeScorer) -> None:
        self.scorer = scorer

    def __call__(self, module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
        """Measure a model."""
        return self._marked(probes, self.scorer.answers(module, probes))

    def under(self, module: LitCausalLM, probes: Sequence[Probe], changes: Sequence[Change]) -> list[Knowledge]:
        """Measure a model under each of some changes, which do nothing to the tokens behind a prompt."""
        return [self._marked(probes, texts) for texts in self.scorer.answers_under(module, probes, changes)]

    def _marked(self, probes: Sequence[Probe], texts: Sequence[str]) -> Knowledge:
        matched = [self.scorer.marked(probe, text) for probe, text in zip(probes, texts, strict=True)]
        return Knowledge(None, torch.tensor(matched), [[text] for text in texts])
