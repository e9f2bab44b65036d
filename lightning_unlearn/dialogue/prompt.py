"""Prompts that ask a language model to rate a dialogue."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Literal, NamedTuple
from zlib import crc32

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.task import SATISFACTION, RatingTask, task_of
from lightning_unlearn.language.chat import Messages
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["RATING_CUE", "BuiltPrompt", "Gold", "IclFormat", "JudgePrompt", "Mode", "Order"]

Mode = Literal["score_only", "rating_first", "analysis_first"]
IclFormat = Literal["inline", "chat"]
Order = Literal["ascending", "descending", "random"]
Gold = Literal["majority", "mean"]

RATING_CUE, ANALYSIS_CUE = "Rating:", "Analysis:"
_LEFT_OUT = "[...]"
_LEAST = 16  # characters of a turn that is cut


class BuiltPrompt(NamedTuple):
    """A prompt up to where the judge goes on.

    Args:
        ids: Its tokens, of which the last ones are the cue.
        messages: The same as messages; the last one is the cue, the beginning of the answer (``"prefix": True``).
        dialogue: The dialogue as the prompt shows it.
        examples: How many examples it shows.
        dropped_examples: Examples that were left out for its length.
        dropped_turns: Turns of the dialogue that were left out for its length.
    """

    ids: list[int]
    messages: Messages
    dialogue: Dialogue
    examples: int = 0
    dropped_examples: int = 0
    dropped_turns: int = 0


class JudgePrompt:
    r"""The prompt of a judge: instruction, rubric, form of the answer, examples, dialogue, and the cue.

    The cue is the beginning of the judge's own answer, ``"Rating:"`` or ``"Analysis:"``. Each turn of a dialogue is one
    line, so that no text in it can pass for a part of the prompt.

    Args:
        task: What is rated, on which scale; the name of a task that comes with the library, or one of your own.
        mode: What the judge writes: only the rating, a rating and then an analysis, or an analysis and then a rating.
        icl_format: Whether examples stand in the one message of the user, or are messages with answers of their own.
        order: Whether the best example comes last (``"ascending"``), first (``"descending"``), or at a random place,
            which depends on the dialogue's ``id``.
        max_length: Longest prompt in tokens; by default the length that the judge's model was made for. A model with
            learned positions never gets a longer one. Of a prompt that is too long, examples are left out from the
            first on, then the oldest turns except the first, then the middle of long turns.
        example_length: Longest example in tokens: a longer one loses its oldest turns but the first. By default,
            examples are shown whole or not at all.
        rationales: Analyses of examples by the ``id`` of the dialogue. An example without one shows its rating only.
        gold: Which label an example shows: that of the majority of its annotators, or the one nearest to their mean.

    Raises:
        ValueError: If an argument is none of these.

    Example:
        >>> dialogue = Dialogue("1", (Turn("user", "Hi"), Turn("assistant", "Hello!")))
        >>> question, cue = JudgePrompt().messages(dialogue)
        >>> print(question["content"].partition(">\n\n")[2])
        ### Dialogue
        USER: Hi
        ASSISTANT: Hello!
        <BLANKLINE>
        ### Answer
        >>> cue
        {'role': 'assistant', 'content': 'Rating:', 'prefix': True}
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
        example_length: int | None = None,
    ) -> None:
        self.task = task_of(task)
        self.mode = one_of("mode", mode, Mode)
        self.icl_format = one_of("icl_format", icl_format, IclFormat)
        self.order = one_of("order", order, Order)
        self.max_length = max_length if max_length is None else at_least("max_length", max_length, 1)
        self.example_length = (
            example_length if example_length is None else at_least("example_length", example_length, 1)
        )
        self.rationales = dict(rationales or {})
        self.gold = one_of("gold", gold, Gold)

    @property
    def cue(self) -> str:
        """The beginning of the judge's answer."""
        return ANALYSIS_CUE if self.mode == "analysis_first" else RATING_CUE

    def messages(self, dialogue: Dialogue, examples: Sequence[Dialogue] = ()) -> Messages:
        """The prompt as messages, whole; the last one is the cue, with ``"prefix": True``.

        An endpoint that can't go on from the beginning of an answer takes all but the last one.

        Args:
            dialogue: What is to be rated.
            examples: Rated dialogues, the best first.
        """
        return self._messages(dialogue, [(example, 0) for example in self._ordered(dialogue, examples)], 0)

    def gold_label(self, dialogue: Dialogue) -> str:
        """The label that annotators have given a dialogue.

        Raises:
            ValueError: If it has no ratings, or one is outside the scale.
        """
        self.task.check_on_scale(dialogue)
        value = dialogue.majority if self.gold == "majority" else dialogue.mean
        return self.task.labels[self.task.nearest(value)]

    def answer(self, dialogue: Dialogue) -> str:
        """The answer to a dialogue with ratings, as examples show it."""
        rating = f"{RATING_CUE} {self.gold_label(dialogue)}"
        analysis = " ".join(self.rationales.get(dialogue.id, "").split())
        if self.mode == "score_only" or not analysis:
            return rating
        analysis = f"{ANALYSIS_CUE} {analysis}"
        return f"{rating}\n{analysis}" if self.mode == "rating_first" else f"{analysis}\n{rating}"

    def build(
        self,
        prompt_format: PromptFormat,
        dialogue: Dialogue,
        examples: Sequence[Dialogue] = (),
        max_length: int | None = None,
    ) -> BuiltPrompt:
        """The prompt as tokens.

        Args:
            prompt_format: The format of the judge's model.
            dialogue: What is to be rated.
            examples: Rated dialogues, the best first.
            max_length: Longest prompt in tokens; by default that of the constructor.

        Raises:
            ValueError: If it is too long without all that may be left out.
        """
        longest = self.max_length if max_length is None else max_length
        special = sorted(getattr(prompt_format.tokenizer, "all_special_tokens", []), key=len, reverse=True)
        dialogue, *shown = [_without(part, special) for part in (dialogue, *self._ordered(dialogue, examples))]
        cut = [(example, self._too_many(example, prompt_format.tokenizer)) for example in shown]
        removable = max(0, len(dialogue.turns) - 2)

        def built(dropped: int, dialogue: Dialogue = dialogue) -> BuiltPrompt:
            kept, turns = cut[dropped:], max(0, dropped - len(shown))
            messages = self._messages(dialogue, kept, turns)
            left = replace(dialogue, turns=dialogue.turns[:1] + dialogue.turns[1 + turns :])
            ids, less = prompt_format.prompt(messages), min(dropped, len(shown))
            return BuiltPrompt(ids, messages, left, len(kept), less, turns)

        def fits(prompt: BuiltPrompt) -> bool:
            return longest is None or len(prompt.ids) <= longest

        most = len(shown) + removable
        found = _first(range(most + 1), built, fits)
        if fits(found):
            return found
        # Turns that are too long alone lose their middle.
        sizes = range(max(_LEAST, *map(len, _texts(dialogue))), _LEAST - 1, -1)
        found = _first(sizes, lambda size: built(most, _shortened(dialogue, size)), fits)
        if not fits(found):
            raise ValueError(
                f"The prompt for dialogue {dialogue.id!r} has {len(found.ids)} tokens without examples and with its "
                f"turns cut, but max_length is {longest}. Raise max_length, or shorten the task's instruction."
            )
        return found

    def _messages(self, dialogue: Dialogue, examples: Sequence[tuple[Dialogue, int]], dropped_turns: int) -> Messages:
        shown = [(_section(example, dropped), self.answer(example)) for example, dropped in examples]
        question = _section(dialogue, dropped_turns)
        cue = {"role": "assistant", "content": self.cue, "prefix": True}
        head = self._head(dialogue.response is not None)
        if self.icl_format == "inline" or not shown:
            parts = [f"{section}\n{answer}" for section, answer in shown]
            return [{"role": "user", "content": "\n\n".join([head, *parts, question])}, cue]
        messages: Messages = []
        for section, answer in shown:
            messages += [{"role": "user", "content": section}, {"role": "assistant", "content": answer}]
        messages += [{"role": "user", "content": question}, cue]
        messages[0]["content"] = f"{head}\n\n{messages[0]['content']}"
        return messages

    def _too_many(self, example: Dialogue, tokenizer: Any) -> int:
        """How many turns of an example are left out for its length."""
        longest = self.example_length
        if longest is None:
            return 0

        def fits(dropped: int) -> bool:
            return len(tokenizer(_section(example, dropped), add_special_tokens=False)["input_ids"]) <= longest

        removable = max(0, len(example.turns) - 2)
        # [...] in place of a single short turn may be longer, so the whole example is tried first.
        return 0 if fits(0) else bisect_left(range(removable), True, lo=min(1, removable), key=fits)

    def _head(self, response: bool) -> str:
        task = self.task
        what = "the response that follows the dialogue, as its next message" if response else task.aspect
        rubric = "\n".join(f"{label} = {line}" for label, line in zip(task.labels, task.rubric, strict=True))
        choice = f"one of {', '.join(task.labels)}"
        forms = {
            "score_only": f"Rating: <{choice}>",
            "rating_first": f"Rating: <{choice}>\nAnalysis: <two sentences>",
            "analysis_first": f"Analysis: <two sentences>\nRating: <{choice}>",
        }
        form = f"Answer in this form:\n{forms[self.mode]}"
        return f"{task.instruction} Rate {what}:\n{rubric}\n\n{form}"

    def _ordered(self, dialogue: Dialogue, examples: Sequence[Dialogue]) -> list[Dialogue]:
        ordered = list(examples)
        if self.order == "ascending":
            ordered.reverse()
        elif self.order == "random":
            Random(crc32(dialogue.id.encode())).shuffle(ordered)
        return ordered


def _section(dialogue: Dialogue, dropped: int) -> str:
    lines = [f"{turn.role.upper()}: {_line(turn.text)}".rstrip() for turn in dialogue.turns]
    if dropped:
        lines[1 : 1 + dropped] = [_LEFT_OUT]
    parts = ["### Dialogue", *lines]
    if dialogue.response is not None:
        parts += ["", "### Response", _line(dialogue.response)]
    return "\n".join([*parts, "", "### Answer"])


def _line(text: str) -> str:
    return " ".join(text.split())


def _texts(dialogue: Dialogue) -> list[str]:
    return [*(turn.text for turn in dialogue.turns), *([dialogue.response] if dialogue.response else [])]


def _mapped(dialogue: Dialogue, change: Callable[[str], str]) -> Dialogue:
    response = change(dialogue.response) if dialogue.response is not None else None
    return replace(
        dialogue, turns=tuple(Turn(turn.role, change(turn.text)) for turn in dialogue.turns), response=response
    )


def _without(dialogue: Dialogue, special: Sequence[str]) -> Dialogue:
    """The dialogue with special tokens in its texts taken apart: they would be commands to the judge."""

    def apart(text: str) -> str:
        for token in special:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
        return text

    return _mapped(dialogue, apart)


def _shortened(dialogue: Dialogue, size: int) -> Dialogue:
    """The dialogue with the middle of long turns left out."""

    def cut(text: str) -> str:
        return text if len(text) <= size else f"{text[: size // 2]} {_LEFT_OUT} {text[len(text) - size // 2 :]}"

    return _mapped(dialogue, cut)


def _first(
    choices: Sequence[int], built: Callable[[int], BuiltPrompt], fits: Callable[[BuiltPrompt], bool]
) -> BuiltPrompt:
    """The first prompt that fits, as they get shorter; the last one where none does."""
    prompt = built(choices[0])
    if fits(prompt):
        return prompt
    place = bisect_left(choices, True, lo=1, key=lambda choice: fits(built(choice)))
    return built(choices[min(place, len(choices) - 1)])
