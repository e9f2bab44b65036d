"""Extractors: how a rating is read off a judge."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol
from zlib import crc32

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least, one_of, regex
from lightning_unlearn.dialogue.choosing import RATING_BEGINS, Sampled, StopsWhere, rating_begins
from lightning_unlearn.dialogue.prompt import ANALYSIS_CUE, RATING_CUE, BuiltPrompt, JudgePrompt
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.functional.dialogue.expected_score import (
    argmax_score,
    expected_score,
    label_weights,
    ratio_score,
)
from lightning_unlearn.functional.dialogue.rating_text import RATING_PATTERN, parse_bare, parse_label, parse_rating
from lightning_unlearn.language.continuation import Choose, likeliest

if TYPE_CHECKING:
    from lightning_unlearn.dialogue.judge import DialogueJudge

__all__ = ["AnalysisExtractor", "Extractor", "LogitExtractor", "Reduce", "SelfConsistency", "TextExtractor"]

Reduce = Literal["expected", "argmax", "ratio"]
Invalid = Literal["nan", "mid", "logits"]

_CUE_TOKENS = 12  # that hold the beginning of a rating


class Extractor(Protocol):
    """Reads ratings off a judge.

    Attributes:
        max_new_tokens: Longest text that the judge writes for it, in tokens.
    """

    max_new_tokens: int

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        """One rating a prompt."""


class Writes(Protocol):
    """An extractor that has the judge write, and can have it write several times."""

    max_new_tokens: int

    def ratings(
        self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt], choose: Choose, copies: int
    ) -> list[Rating]:
        """``copies`` ratings a prompt, those of one prompt together."""


class LogitExtractor:
    r"""Ratings from the probabilities of the labels at the cue: one forward pass an item.

    With :math:`p_i` the probability of label :math:`i` among the labels and :math:`v_i` its value, ``"expected"`` is
    :math:`\sum_i p_i v_i`, ``"argmax"`` the value of the likeliest label and ``"ratio"`` the share of the upper one of
    two labels with the values 0 and 1. Where labels begin with the same token, their probability is the product of
    those of their tokens.

    Args:
        reduce: What becomes of the probabilities.
        top_k: Of ``"expected"``, keep only so many of the likeliest labels.
        length_norm: Take the mean log-probability of a label's tokens in place of their sum.

    Raises:
        ValueError: If ``reduce`` is another word, or ``top_k`` is below 1 or without effect.

    References:
        Jia et al., "Leveraging LLMs for Dialogue Quality Measurement", 2024, arXiv:2406.17304.
    """

    max_new_tokens = 0

    def __init__(self, reduce: Reduce = "expected", top_k: int | None = None, length_norm: bool = False) -> None:
        self.reduce = one_of("reduce", reduce, Reduce)
        if top_k is not None and reduce != "expected":
            raise ValueError(f"top_k chooses the labels of reduce='expected', and has no effect on {reduce!r}.")
        self.top_k = top_k if top_k is None else at_least("top_k", top_k, 1)
        self.length_norm = length_norm

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        """One rating a prompt.

        Raises:
            ValueError: If the prompts end before an analysis, and not before a rating.
        """
        if judge.prompt.mode == "analysis_first":
            raise ValueError(
                "The prompts of mode='analysis_first' end before the analysis, where no rating follows. Use "
                "AnalysisExtractor(), or mode='score_only'."
            )
        return self.of(judge, [prompt.ids for prompt in prompts])

    def of(
        self, judge: DialogueJudge, prompts: Sequence[Sequence[int]], texts: Sequence[str | None] = ()
    ) -> list[Rating]:
        """Ratings after prompts that end with the cue of a rating.

        Args:
            judge: The judge.
            prompts: Token ids.
            texts: What it has written before, for the record.

        Raises:
            ValueError: If ``reduce`` is ``"ratio"`` and the labels do not have the values 0 and 1.
        """
        if self.reduce == "ratio" and judge.task.values != (0, 1):
            raise ValueError(
                f"reduce='ratio' gives the share of the upper of two labels, from 0 to 1, but the labels of "
                f"{judge.task.name!r} have the values {judge.task.values}. Use reduce='expected', or a task with the "
                "values (0, 1)."
            )
        log_probs = judge.label_log_probs(prompts, whole=self.length_norm)
        mass = log_probs.exp().sum(-1)
        if self.length_norm:
            log_probs = log_probs / torch.tensor([len(tail) for tail in judge.label_tokens.tails])
        return [
            Rating(score, judge.task.labels[int(row.argmax())], tuple(probs), text, True, share)
            for score, row, probs, text, share in zip(
                self._reduced(log_probs, judge.task.values).tolist(),
                log_probs,
                label_weights(log_probs, self.top_k).tolist(),
                texts or [None] * len(prompts),
                mass.tolist(),
                strict=True,
            )
        ]

    def _reduced(self, log_probs: Tensor, values: Sequence[float]) -> Tensor:
        if self.reduce == "ratio":
            return ratio_score(log_probs)
        scale = torch.tensor(values)
        return (
            argmax_score(log_probs, scale) if self.reduce == "argmax" else expected_score(log_probs, scale, self.top_k)
        )


class TextExtractor:
    """Ratings found in what the judge writes.

    With the analysis first the last rating in the text counts, otherwise the first one. A judge that is asked for the
    rating alone stops at the end of the line that has it.

    Args:
        pattern: Regular expression whose first group is a number; by default a number after the word "rating". Labels
            that are words are looked for after that word.
        invalid: Score where there is no rating on the scale: NaN, the middle of the scale, or what the logits say.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers written together.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, pattern: str | None = None, invalid: Invalid = "nan", max_new_tokens: int = 128, batch_size: int = 64
    ) -> None:
        self.pattern = None if pattern is None else regex("pattern", pattern)
        self.invalid = one_of("invalid", invalid, Invalid)
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)
        self.batch_size = at_least("batch_size", batch_size, 1)

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        """One rating a prompt, of the likeliest answer."""
        return self.ratings(judge, prompts, likeliest, 1)

    def ratings(
        self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt], choose: Choose, copies: int
    ) -> list[Rating]:
        """``copies`` ratings a prompt."""
        if judge.prompt.mode == "score_only" and (ends := judge.prompt_format.ends):

            def has_rating(text: str) -> bool:
                lines, line_end, _ = text.rpartition("\n")
                return bool(line_end) and self.read(judge.prompt, f"{judge.prompt.cue} {lines}").parsed

            choose = StopsWhere(choose, judge.prompt_format.tokenizer, ends[0], has_rating)
        written = judge.write([p.ids for p in prompts], self.max_new_tokens, choose, copies, self.batch_size)
        texts = [f"{judge.prompt.cue} {text}" for text in written]
        ratings = [self.read(judge.prompt, text) for text in texts]
        missing = [place for place, rating in enumerate(ratings) if not rating.parsed]
        if self.invalid == "logits" and missing:
            asked = [_begun(judge, prompts[place // copies], texts[place]) for place in missing]
            read = LogitExtractor().of(judge, asked, [texts[place] for place in missing])
            for place, found in zip(missing, read, strict=True):
                ratings[place] = Rating(found.score, found.label, found.probs, found.text, False, found.vocab_mass)
        return ratings

    def read(self, prompt: JudgePrompt, text: str) -> Rating:
        """The rating in a text.

        Args:
            prompt: What was asked.
            text: The answer.

        Raises:
            ValueError: If there is a pattern for numbers and the labels are words.
        """
        task = prompt.task
        which: Literal["first", "last"] = "last" if prompt.mode == "analysis_first" else "first"
        if task.numeric:
            value = parse_rating(text, task.values[0], task.values[-1], which, self.pattern or RATING_PATTERN)
        elif self.pattern is not None:
            raise ValueError(f"pattern finds numbers, but the labels of {task.name} are {task.labels}. Leave it out.")
        else:
            label = parse_label(text, task.labels, which)
            value = None if label is None else task.values[label]
        if value is None and self.pattern is None and not re.search(r"\brating", text, re.IGNORECASE):
            label = parse_bare(text, task.labels)  # an endpoint may answer with the label alone
            value = None if label is None else task.values[label]
        if value is not None:
            return Rating(value, task.labels[task.nearest(value)], text=text)
        return Rating(task.middle if self.invalid == "mid" else math.nan, text=text, parsed=False)


class AnalysisExtractor:
    """The judge writes its analysis, and the probabilities of the labels after it are read.

    The judge stops where it comes to the rating. An analysis that does not come to it is taken as it is.

    Args:
        logits: How the probabilities are read; by default `LogitExtractor`.
        max_new_tokens: Longest analysis in tokens.
        batch_size: Analyses written together.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, logits: LogitExtractor | None = None, max_new_tokens: int = 128, batch_size: int = 64) -> None:
        self.logits = logits or LogitExtractor()
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)
        self.batch_size = at_least("batch_size", batch_size, 1)

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        """One rating a prompt, after the likeliest analysis.

        Raises:
            ValueError: If the prompts do not ask for an analysis first.
        """
        return self.ratings(judge, prompts, likeliest, 1)

    def ratings(
        self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt], choose: Choose, copies: int
    ) -> list[Rating]:
        """``copies`` ratings a prompt."""
        if judge.prompt.mode != "analysis_first":
            raise ValueError(
                f"AnalysisExtractor needs JudgePrompt(mode='analysis_first'), but the mode is {judge.prompt.mode!r}."
            )
        if ends := judge.prompt_format.ends:
            choose = StopsWhere(choose, judge.prompt_format.tokenizer, ends[0], rating_begins, _CUE_TOKENS)
        written = judge.write([p.ids for p in prompts], self.max_new_tokens, choose, copies, self.batch_size)
        texts = [f"{ANALYSIS_CUE} {text}".strip() for text in written]
        asked = [_begun(judge, prompts[place // copies], text) for place, text in enumerate(texts)]
        return self.logits.of(judge, asked, texts)


class SelfConsistency:
    """The mean of several sampled answers.

    Args:
        extractor: How each answer is rated: `TextExtractor` or `AnalysisExtractor`.
        n: Answers to a prompt.
        temperature: Temperature of the samples.
        seed: Chooses the samples, which depend on the prompt and on nothing beside it.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models", 2023, arXiv:2203.11171.
    """

    def __init__(self, extractor: Writes, n: int = 5, temperature: float = 0.7, seed: int = 0) -> None:
        self.extractor, self.max_new_tokens = extractor, extractor.max_new_tokens
        self.n, self.temperature, self.seed = at_least("n", n, 1), above("temperature", temperature, 0), seed

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        """One rating a prompt: the mean over its answers with a rating."""
        keys = [crc32(repr((prompt.ids, turn)).encode()) for prompt in prompts for turn in range(self.n)]
        sampled = Sampled(self.temperature, self.seed, keys)
        ratings = self.extractor.ratings(judge, prompts, sampled, self.n)
        return [self._mean(judge, ratings[start : start + self.n]) for start in range(0, len(ratings), self.n)]

    @staticmethod
    def _mean(judge: DialogueJudge, ratings: Sequence[Rating]) -> Rating:
        used = [rating for rating in ratings if not math.isnan(rating.score)]
        parsed = any(rating.parsed for rating in ratings)
        if not used:
            return Rating(math.nan, text=ratings[0].text, parsed=False)
        if parsed:  # a middle that stands for no rating is none where there are others
            used = [rating for rating in used if rating.parsed]
        score = math.fsum(rating.score for rating in used) / len(used)
        label = judge.task.labels[judge.task.nearest(score)] if parsed or used[0].label else None
        probs = [rating.probs for rating in used if rating.probs is not None]
        means = tuple(math.fsum(column) / len(probs) for column in zip(*probs, strict=True)) if probs else None
        return Rating(score, label, means, used[0].text, parsed)


def _begun(judge: DialogueJudge, prompt: BuiltPrompt, text: str) -> list[int]:
    """A prompt up to the cue of the rating, with the analysis that the judge has written before it."""
    if judge.prompt.mode != "analysis_first":
        return prompt.ids
    begins = [match.start() for match in RATING_BEGINS.finditer(text)]
    # Odd white space is not what chat templates write as it is.
    lines = (text[: begins[-1]] if begins else text).splitlines()
    analysis = "\n".join(" ".join(line.split()) for line in lines).strip()
    *messages, cue = prompt.messages

    def built(size: int) -> list[int]:
        answer = f"{analysis[:size].rstrip()}\n{RATING_CUE}"
        return judge.prompt_format.prompt([*messages, {**cue, "content": answer}])

    if judge.fits(whole := built(len(analysis))):
        return whole
    # Text that is tokenized again may have more tokens than the judge has written.
    sizes = range(len(analysis), len(ANALYSIS_CUE) - 1, -1)
    return built(sizes[bisect_left(sizes, True, key=lambda size: judge.fits(built(size)))])
