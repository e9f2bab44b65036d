"""Conversations written by a chat template, with the positions of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

__all__ = ["ChatTemplate", "Conversation", "Messages", "Span", "TurnEnd", "Written"]

Messages = list[dict[str, Any]]

_MARK = "\U000f4e00{}\U000f4e01"  # private characters, which no template strips, trims or looks for
_QUESTION = {"role": "user", "content": _MARK.format("q")}
_ANSWER = {"role": "assistant", "content": _MARK.format("a")}
_REASONING = ("reasoning_content", "reasoning", "thinking")


class Conversation(NamedTuple):
    """Messages that end with an answer.

    Args:
        messages: Dicts with ``role`` and ``content``.
        context: The beginning of the last answer that gets no label, without white space at its end.
        ends: Whether the last answer ends there, and so the token that ends it follows.
    """

    messages: Messages
    context: str = ""
    ends: bool = True


class Span(NamedTuple):
    """Characters of an answer.

    Args:
        start: Where the white space before it begins.
        first: Its first visible character.
        end: The end of what is supervised.
    """

    start: int
    first: int
    end: int


class Written(NamedTuple):
    """A text with the positions of its answers.

    Args:
        text: From the beginning to the end of the last answer.
        answers: What is supervised.
        open: Whether the end-of-sequence token is still to be added.
        continues_answer: Whether the last span continues an answer.
    """

    text: str
    answers: list[Span]
    open: bool
    continues_answer: bool = False


class TurnEnd(NamedTuple):
    """What a template writes after an answer, up to the token that ends the turn.

    Args:
        text: Its text; empty where the template writes nothing there.
        token: Id of the token at which generation stops, if there is one.
    """

    text: str
    token: int | None


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with its arguments and a fixed date.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        arguments: Arguments of the template, such as ``enable_thinking``.
        date: The date that the template writes, in ISO format, where it writes the day's.
    """

    tokenizer: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    @cached_property
    def writes_date(self) -> bool:
        """Whether the template asks for the time."""
        return "strftime_now" in self._source

    def prompts(self, conversations: Sequence[Messages]) -> list[str]:
        """Texts up to where the answer begins.

        A space at the end is left out, since it belongs to the first token of the answer.
        """
        if self._asks:
            texts = self._render(conversations, add_generation_prompt=True)
        else:
            texts = self._render([[*messages, _ANSWER] for messages in conversations])
            texts = [text.rpartition(_ANSWER["content"])[0] for text in texts]
        return [text.rstrip(" ") for text in texts]

    def write(self, conversations: Sequence[Conversation], all_turns: bool = False) -> list[Written]:
        """Conversations up to the end of the last answer.

        Args:
            conversations: Conversations that end with an answer.
            all_turns: Whether all answers get labels, and not only the last one.

        Raises:
            ValueError: If the template can't write one of them.
        """
        texts = self._render([conversation.messages for conversation in conversations])
        outlines = self._render([_outline(conversation.messages) for conversation in conversations])
        return [
            self._place(conversation, text, outline, all_turns)
            for conversation, text, outline in zip(conversations, texts, outlines, strict=True)
        ]

    @cached_property
    def end(self) -> TurnEnd:
        """What ends an answer.

        It is the first special token after an answer, or the token between an answer and the next question if the
        template does not end the last answer. A template that writes neither has no end of its own.
        """
        after = _after(*self._render([[_QUESTION, _ANSWER]]))
        for tokens in self._tokens():
            if found := _first(after, tokens):
                return found
        return TurnEnd(after.rstrip(), None) if after.strip() else self._end_between_turns()

    def _end_between_turns(self) -> TurnEnd:
        none = TurnEnd("", None)
        try:
            (text,) = self._render([[_QUESTION, _ANSWER, _QUESTION]])
        except ValueError:
            return none
        first, _, rest = text.partition(_QUESTION["content"])
        asked, _, rest = rest.partition(_ANSWER["content"])
        between = rest.partition(_QUESTION["content"])[0]
        eos = self.tokenizer.eos_token
        if eos and eos in between:
            return TurnEnd(between[: between.find(eos) + len(eos)], self.tokenizer.eos_token_id)
        # What begins a turn is a token too, of which the first question has one without an end before it.
        special, _ = self._tokens()
        shared = _shared(asked, between)
        found = _first(shared, special)
        if found and (_first(shared[len(found.text) :], special) or not first.endswith(between)):
            return found
        return none

    @cached_property
    def lead(self) -> str:
        """What the template writes between the prompt that asks for an answer and an answer without reasoning.

        Llama 2 has a space there, Qwen 3 an empty think block.
        """
        (prompt,), (text,) = self.prompts([[_QUESTION]]), self._render([[_QUESTION, _ANSWER]])
        head = text.partition(_ANSWER["content"])[0]
        return head[len(prompt) :] if head.startswith(prompt) else head.rpartition(_QUESTION["content"])[2]

    @cached_property
    def asks_otherwise(self) -> bool:
        """Whether the prompt that asks for an answer is not what the template writes before an answer."""
        return bool(self.lead.strip())

    @cached_property
    def _asks(self) -> bool:
        """Whether the template has a prompt that asks for an answer."""
        try:
            return self._render([[_QUESTION]], add_generation_prompt=True) != self._render([[_QUESTION]])
        except ValueError:  # some write a question only together with the prompt
            return True

    def _tokens(self) -> tuple[dict[str, int], dict[str, int]]:
        """Ids of the special tokens and of other added ones, without those that are white space."""
        added = {
            token.content: (number, token.special) for number, token in self.tokenizer.added_tokens_decoder.items()
        }
        special = {token: number for token, (number, flag) in added.items() if flag}
        special |= dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))
        other = {token: number for token, (number, _) in added.items() if token not in special}
        visible = [{t: number for t, number in tokens.items() if t.strip(" \n\t▁")} for tokens in (special, other)]
        return visible[0], visible[1]

    @cached_property
    def _source(self) -> str:
        """The template itself."""
        return str(self.tokenizer.get_chat_template(self.arguments.get("chat_template"), self.arguments.get("tools")))

    @cached_property
    def _options(self) -> dict[str, Any]:
        options = dict(self.arguments)
        if self.date is not None and self.writes_date:
            options["chat_template"] = _clock(datetime.fromisoformat(self.date)) + self._source
        return options

    @cached_property
    def _takes(self) -> set[type]:
        """Whether the template writes contents that are texts, lists of parts, or both; many write the list itself."""
        from jinja2.exceptions import TemplateError

        mark, found = _MARK.format(0), set()
        contents: list[Any] = [mark, [{"type": "text", "text": mark}]]
        for content in contents:
            with suppress(TemplateError, TypeError, KeyError):
                message = {"role": "user", "content": content}
                text = self.tokenizer.apply_chat_template([message], tokenize=False, **self._options)
                if mark in text and (content is mark or str(content) not in text):
                    found.add(type(content))
        return found

    def _readable(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message with its content in the form that the template writes."""
        content = message.get("content")
        if isinstance(content, list) and self._takes == {str}:
            return {**message, "content": content_text(message)}
        if isinstance(content, str) and self._takes == {list}:
            return {**message, "content": [{"type": "text", "text": content}]}
        return message

    def _render(self, conversations: Sequence[Messages], add_generation_prompt: bool = False) -> list[str]:
        from jinja2.exceptions import TemplateError

        def render(part: Sequence[Messages]) -> list[str]:
            texts = self.tokenizer.apply_chat_template(
                list(part), tokenize=False, add_generation_prompt=add_generation_prompt, **self._options
            )
            return list(texts)

        if not conversations:
            return []
        conversations = [[dict(self._readable(message)) for message in messages] for messages in conversations]
        try:
            texts = render(conversations)
        except (TemplateError, TypeError, KeyError):
            for messages in conversations:
                try:
                    render([messages])
                except (TemplateError, TypeError, KeyError) as error:
                    roles = [message.get("role") for message in messages]
                    raise ValueError(
                        f"The tokenizer's chat template can't write messages of {roles}: {error}. Give messages that "
                        "it takes (some have no system message: leave system_prompt out, and put its text into the "
                        "question), or pass prompt_format to use in place of the template."
                    ) from error
            raise
        for messages, text in zip(conversations, texts, strict=True):
            last = next((message for message in reversed(messages) if message.get("role") == "user"), None)
            for message in messages:
                kept = message is last or message.get("role") == "system"
                if kept and (said := content_text(message).strip()) not in text:
                    raise ValueError(
                        f"The tokenizer's chat template leaves the {message['role']} message out, {said[:60]!r}. "
                        + ("Put its text into the question, or pass" if message is not last else "Pass")
                        + " prompt_format to use in place of the template."
                    )
        return texts

    def _place(self, conversation: Conversation, text: str, outline: str, all_turns: bool) -> Written:
        spans = list(_spans(conversation.messages, text, outline))
        spaces = self.lead if not self.asks_otherwise else ""
        answers = []
        for begin, stop in spans if all_turns else spans[-1:]:
            blank = len(spaces) if spaces and text.endswith(spaces, 0, begin) else 0
            ended = stop + len(self.end.text) if text.startswith(self.end.text, stop) else stop
            answers.append(Span(begin - blank, _first_visible(text, begin), ended))
        _, end = spans[-1]
        if conversation.context:
            left = content_text(conversation.messages[-1])[len(conversation.context) :]
            begin = end - len(left if text.endswith(left, 0, end) else left.rstrip())
            answers[-1] = Span(begin, _first_visible(text, begin), end)
        # A template may leave out the end of the last turn, for the model to write.
        text = text[:end] + (self.end.text if conversation.ends else "")
        answers[-1] = Span(answers[-1].start, answers[-1].first, len(text))
        return Written(text, answers, conversation.ends and not self.end.text, bool(conversation.context))


def content_text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)


def _with_text(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    parts = isinstance(message.get("content"), list)
    return {**message, "content": [{"type": "text", "text": text}] if parts else text}


def _answers(messages: Messages) -> list[tuple[int, str]]:
    """Numbers and texts of the assistant's messages; those that only call tools have no text."""
    return [
        (number, text)
        for number, message in enumerate(messages)
        if message.get("role") == "assistant" and (text := content_text(message)).strip()
    ]


def _outline(messages: Messages) -> Messages:
    """The messages with a mark in place of each answer and its reasoning."""
    outline = list(messages)
    for number, _ in _answers(messages):
        plain = {key: value for key, value in messages[number].items() if key not in _REASONING}
        outline[number] = _with_text(plain, _MARK.format(number))
    return outline


def _spans(messages: Messages, text: str, outline: str) -> Iterator[tuple[int, int]]:
    """Position of each answer in a text, found by the text around its mark in the outline."""
    place = 0
    answers = _answers(messages)
    for (number, answer), later in zip(answers, [*answers[1:], None], strict=True):
        before, found, outline = outline.partition(_MARK.format(number))
        # Reasoning takes the place of the think block that a template writes where there is none.
        whole = text.startswith(before, place)
        place += len(before if whole else _shared(before, text[place : place + len(before)]))
        after = outline.partition(_MARK.format(later[0]))[0] if later else outline
        # As it is or, as some templates write it, without the white space around it.
        forms = (answer, answer.strip(), answer.lstrip(), answer.rstrip())
        end = next((place + len(form) for form in forms if text.startswith(form + after, place)), -1)
        if end < 0:
            end = text.find(after, place) if later else len(text) - len(after)
        if not found or end < place or not text[place:end].rstrip().endswith(_last_line(answer)):
            raise ValueError(
                f"The tokenizer's chat template does not write the answer {answer[:60]!r} as a message of the "
                "assistant, so its tokens can't be told from those of the prompt. Pass prompt_format to use in place "
                "of the template."
            )
        yield place, end
        place = end


def _last_line(answer: str) -> str:
    """The end of an answer, without the reasoning that templates leave out."""
    return answer.rpartition("</think>")[2].strip().rpartition("\n")[2].strip()


def _shared(a: str, b: str) -> str:
    """The beginning that two texts share."""
    return a[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))]


def _first(text: str, tokens: Mapping[str, int]) -> TurnEnd | None:
    """The text up to the first of some tokens."""
    places = [(text.find(token), -len(token), token) for token in tokens if token in text]
    if not places:
        return None
    place, _, token = min(places)
    return TurnEnd(text[: place + len(token)], tokens[token])


def _first_visible(text: str, start: int) -> int:
    """The first character from a place on that is not white space."""
    return len(text) - len(text[start:].lstrip())


def _after(text: str) -> str:
    _, found, after = text.partition(_ANSWER["content"])
    if not found:
        raise ValueError(
            "The tokenizer's chat template does not write the messages of the assistant, so there is nothing to "
            "supervise. Pass prompt_format to use in place of the template."
        )
    return after


def _clock(date: datetime) -> str:
    """A definition of ``strftime_now`` that gives a fixed date, to put before a template.

    Templates are rendered in a sandbox that accepts no functions, so the clock is defined in the template.
    """
    values = {f"%-{letter}": str(int(date.strftime(f"%{letter}"))) for letter in "dmHIMSj"}
    values |= {f"%{letter}": date.strftime(f"%{letter}") for letter in "aAwdbBmyYHIpMSfjUWcxXGuV%"}
    expression = "format"
    for directive, value in values.items():
        expression += f" | replace({directive!r}, {value!r})"
    # The line break is trimmed, so that the template still begins a line.
    return f"{{% macro strftime_now(format) %}}{{{{ {expression} }}}}{{% endmacro %}}\n"
