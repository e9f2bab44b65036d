"""Prompts that ask a language model to rate a dialogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.task import SATISFACTION, RatingTask
from lightning_unlearn.language.chat import Messages
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["BuiltPrompt", "Gold", "IclFormat", "JudgePrompt", "Mode", "Order"]

Mode = Literal["score_only", "rating_first", "analysis_first"]
IclFormat = Literal["inline", "chat"]
Order = Literal["ascending", "descending", "random"]
Gold = Literal["majority", "mean"]


class BuiltPrompt(NamedTuple):
    """A prompt up to where the judge goes on.

    Args:
        ids: Its tokens, of which the last ones are the cue.
        messages: The same as messages; the last one is the cue, the beginning of the answer (``"prefix": True``).
        examples: How many examples it shows.
        dropped_examples: Examples that were left out for its length.
        dropped_turns: Turns of the dialogue that were left out for its length.
    """

    ids: list[int]
    messages: Messages
    examples: int = 0
    dropped_examples: int = 0
    dropped_turns: int = 0


class JudgePrompt:
    """The prompt of a judge.

    Args:
        task: What is rated, on which scale; the name of a task that comes with the library, or one of your own.
        mode: What the judge writes: only the rating, a rating and then an analysis, or an analysis and then a rating.
        icl_format: Whether examples stand in the one message of the user, or are messages with answers of their own.
        order: Where the best of the examples stands: last, first, or anywhere (the same for each dialogue each time).
        max_length: Longest prompt in tokens. The first examples are left out, then the first turns but one.
        rationales: Analyses of examples by the ``id`` of the dialogue. An example without one shows its rating only.
        gold: Which label an example shows: that of the majority of its annotators, or the one nearest to their mean.
    """

    def __init__(
        self,
        task: RatingTask | str = SATISFACTION,
        mode: Mode = "score_only",
        icl_format: IclFormat = "inline",
        order: Order = "ascending",
        max_length: int | None = None,
        rationales: Mapping[str, str] | None = None,
        gold: Gold = "majority",
    ) -> None: ...

    def messages(self, dialogue: Dialogue, examples: Sequence[Dialogue] = ()) -> Messages:
        """The prompt as messages, whole; the last one is the cue, with ``"prefix": True``.

        An endpoint that can't go on from the beginning of an answer takes all but the last one.
        """
        raise NotImplementedError

    def answer(self, dialogue: Dialogue) -> str:
        """The gold answer to a dialogue with ratings, as examples show it; it begins with the cue."""
        raise NotImplementedError

    def build(self, prompt_format: PromptFormat, dialogue: Dialogue, examples: Sequence[Dialogue] = ()) -> BuiltPrompt:
        """The prompt as tokens, within ``max_length``.

        Args:
            prompt_format: The format of the judge's model.
            dialogue: What is to be rated.
            examples: Rated dialogues, the best first.
        """
        raise NotImplementedError
