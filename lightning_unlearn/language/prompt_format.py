"""Prompt formats, which turn questions and answers into tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.files import write_text
from lightning_unlearn.language.chat import ChatTemplate, Conversation, Messages, Span, Written, content_text
from lightning_unlearn.language.tokens import TokenRow, beginning, encode, encode_prompts

__all__ = ["PromptFormat", "Turns"]

Turns = Literal["last", "all"]

_FILE = "prompt_format.json"
_PLAIN = "Question: {question}\nAnswer: "
_OWN_ARGUMENTS = {
    *("conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}


@dataclass(frozen=True)
class PromptFormat:
    r"""Format of questions and answers, the same in training, generation and evaluation.

    Prompt and answer are written by the tokenizer's chat template and tokenized as one text. The answer ends with the
    token that the template writes after it, such as ``<|im_end|>`` or ``<end_of_turn>``. A tokenizer without a template
    gets ``"Question: {question}\nAnswer: "``, and an answer ends with the end-of-sequence token. White space at the end
    of a plain prompt belongs to the first token of the answer, as in running text.

    Args:
        tokenizer: A Hugging Face tokenizer. A data module also takes the hub id or folder of one, and where none is
            given it takes the model's own.
        system_prompt: System message of the chat template; by default the template's own.
        prompt_format: A format string with ``{question}``, and ``{system}`` where there is a system prompt, used in
            place of the chat template.
        chat_template: A chat template (Jinja) in place of the tokenizer's own.
        chat_template_kwargs: Arguments of the chat template, such as ``{"enable_thinking": False}``.
        date: The date, as ``"2025-04-10"``, that a template writes where it writes the day's. By default that of the
            start of the run, which its checkpoints and exports keep.
        turns: Which answers of a conversation with several turns get labels: the ``"last"`` one or ``"all"``.

    Raises:
        ValueError: If ``prompt_format`` has other fields, an argument is one of those that the library sets itself, or
            a system prompt has no place to go into.

    Example:
        >>> PromptFormat(prompt_format="[INST] {question} [/INST]").text("Where is Lima?")
        '[INST] Where is Lima? [/INST]'
    """

    tokenizer: Any = None
    system_prompt: str | None = None
    prompt_format: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    date: str | None = None
    turns: Turns = "last"

    def __post_init__(self) -> None:
        one_of("turns", self.turns, Turns)
        if "MistralCommon" in type(self.tokenizer).__name__:
            raise ValueError(
                "A tokenizer of mistral-common writes conversations itself and gives no text of them. Load the one of "
                "transformers: AutoTokenizer.from_pretrained(..., mistral_format=False)."
            )
        if self.date is not None:
            _check_date(self.date)
        if own := sorted(_OWN_ARGUMENTS & set(self.chat_template_kwargs or {})):
            raise ValueError(
                f"chat_template_kwargs are arguments of the template itself, but got {own}, which the library sets. "
                "Leave them out; a template of your own goes into chat_template."
            )
        if self.prompt_format is None:
            return
        names = {name for _, name, *_ in Formatter().parse(self.prompt_format) if name is not None}
        if "question" not in names or names - {"question", "system"}:
            raise ValueError(
                "prompt_format must contain {question}, and no other field than {system}, but got "
                f"{self.prompt_format!r}."
            )
        if self.system_prompt and "system" not in names:
            raise ValueError(
                "system_prompt is a part of the chat template, which prompt_format replaces. Write it into "
                "prompt_format, or leave one of the two out."
            )
        if self.chat_template or self.chat_template_kwargs:
            raise ValueError(
                "prompt_format replaces the chat template, so chat_template and chat_template_kwargs have no effect. "
                "Leave one of the two out."
            )

    @property
    def is_chat(self) -> bool:
        """Whether questions go into a chat template."""
        own = self.chat_template or getattr(self.tokenizer, "chat_template", None)
        return self.prompt_format is None and bool(own)

    @property
    def writes_date(self) -> bool:
        """Whether the chat template writes the day's date."""
        return self.is_chat and self.template.writes_date

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template with its arguments."""
        arguments = dict(self.chat_template_kwargs or {})
        if self.chat_template:
            arguments["chat_template"] = self.chat_template
        return ChatTemplate(self.tokenizer, arguments, self.date)

    @cached_property
    def ends(self) -> list[int]:
        """Tokens at which an answer ends: that of the chat template and the end of a text."""
        ends = [self.template.end.token if self.is_chat else None, self.tokenizer.eos_token_id]
        return list(dict.fromkeys(end for end in ends if end is not None))

    @property
    def end_text(self) -> str:
        """Text that ends an answer where no token does."""
        return self.template.end.text.strip() if self.is_chat and self.template.end.token is None else ""

    def messages(self, question: str | Messages, system: str | None = None) -> Messages:
        """A question as messages, with the system prompt first.

        Args:
            question: A question, or the messages before an answer. A last message of the assistant with
                ``"prefix": True`` is the beginning of the answer, which the model continues.
            system: System prompt of this question; by default that of the format.
        """
        system = system or self.system_prompt
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        if system and not any(message.get("role") == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": system})
        return messages

    def text(self, question: str | Messages) -> str:
        """The prompt, up to where the answer begins."""
        return self._texts([question])[0]

    def prompt(self, question: str | Messages) -> list[int]:
        """Token ids up to where the answer begins."""
        return self.prompts([question])[0]

    def prompts(self, questions: Sequence[str | Messages]) -> list[list[int]]:
        """Token ids of several questions."""
        return encode_prompts(self.tokenizer, self._texts(questions), self._special)

    def row(self, question: str, answer: str, target: str | None = None) -> TokenRow:
        """Tokens of a question with its answer.

        Args:
            question: The question.
            answer: The whole answer.
            target: The part of the answer that gets labels; what comes before it belongs to the prompt, and what comes
                after it is left out. By default all of the answer.
        """
        return self.rows([self.conversation(self.messages(question), answer, target)])[0]

    def rows(self, conversations: Sequence[Conversation]) -> list[TokenRow]:
        """Tokens of conversations, tokenized together.

        Raises:
            ValueError: If an answer would have no end, or the chat template can't write a conversation.
        """
        if not conversations:
            return []
        if not self.ends and not self.end_text:
            raise ValueError(
                "The tokenizer has no eos_token, so an answer would have no end. Set tokenizer.eos_token to the token "
                "that ends a text of this model."
            )
        if self.is_chat:
            written = self.template.write(conversations, self.turns == "all")
        else:
            written = [self._write_plain(conversation) for conversation in conversations]
        return encode(self.tokenizer, written, self._special, self.tokenizer.eos_token_id)

    @staticmethod
    def conversation(messages: Messages, answer: str | Mapping[str, Any], target: str | None = None) -> Conversation:
        """Messages with an answer.

        Args:
            messages: The messages before it.
            answer: The answer, or the message that holds it.
            target: The part of it that gets labels.
        """
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else dict(answer)
        messages, prefix = _split_prefix(messages)
        if not target and not prefix:
            return Conversation([*messages, message])
        text = content_text(message)
        before = prefix + text[: text.index(target)] if target else prefix
        whole = before + (target or text)
        return Conversation([*messages, {**message, "content": whole}], before.rstrip(), ends=not target)

    def for_tokenizer(self, tokenizer: Any) -> PromptFormat:
        """The same format for another tokenizer, whatever chat template that one has."""
        mine, other = (getattr(part, "chat_template", None) for part in (self.tokenizer, tokenizer))
        if self.tokenizer is None or self.prompt_format or self.chat_template or mine == other:
            return replace(self, tokenizer=tokenizer)
        return replace(self, tokenizer=tokenizer, **({"chat_template": mine} if mine else {"prompt_format": _PLAIN}))

    def state_dict(self) -> dict[str, Any]:
        """Everything but the tokenizer, for a checkpoint or an export."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tokenizer"}

    def save(self, folder: str | Path) -> None:
        """Write the format into the folder of a model, for `load`."""
        write_text(Path(folder) / _FILE, json.dumps(self.state_dict(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> PromptFormat | None:
        """The format that a run has saved in a folder, if there is one."""
        path = Path(folder) / _FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    @property
    def _plain(self) -> str:
        return self.prompt_format or _PLAIN

    @cached_property
    def _special(self) -> list[int]:
        # A chat template writes the special tokens itself.
        return [] if self.is_chat else beginning(self.tokenizer)

    def _texts(self, questions: Sequence[str | Messages]) -> list[str]:
        asked = [_split_prefix(self.messages(question)) for question in questions]
        plain = [messages for messages, prefix in asked if not prefix]
        texts = iter(self.template.prompts(plain) if self.is_chat else [self._plain_text(part) for part in plain])
        begun = [self.conversation(messages, prefix.rstrip(), prefix.rstrip()) for messages, prefix in asked if prefix]
        written = iter(self.template.write(begun) if self.is_chat else [self._write_plain(part) for part in begun])
        return [next(written).text if prefix else next(texts) for _, prefix in asked]

    def _plain_text(self, messages: Messages) -> str:
        system = "".join(content_text(message) for message in messages if message.get("role") == "system")
        others = [message for message in messages if message.get("role") != "system"]
        if [message.get("role") for message in others] != ["user"]:
            raise ValueError(
                f"A plain prompt has one question, but got messages of {[m.get('role') for m in messages]}. The "
                "tokenizer has no chat template for several turns: pass chat_template, or give one question and one "
                "answer a row."
            )
        if system and "{system}" not in self._plain:
            raise ValueError(
                "The tokenizer has no chat template for system_prompt to go into. Leave it out, or pass "
                "prompt_format with the text before the question, or with {system}."
            )
        return self._plain.format(question=content_text(others[0]), system=system).rstrip()

    def _write_plain(self, conversation: Conversation) -> Written:
        *messages, last = conversation.messages
        prompt, answer = self._plain_text(messages), content_text(last)
        white = self._plain[len(self._plain.rstrip()) :]
        text = prompt + white + answer
        start = len(prompt) if not conversation.context else len(prompt + white + conversation.context)
        first = len(text) - len(text[start:].lstrip())
        return Written(text, [Span(start, first, len(text))], conversation.ends, bool(conversation.context))


def _split_prefix(messages: Messages) -> tuple[Messages, str]:
    """The messages before an answer, and the beginning of it with white space after it."""
    if not messages or not messages[-1].get("prefix"):
        return messages, ""
    prefix = content_text(messages[-1])
    return list(messages[:-1]), prefix if prefix[-1:].isspace() else f"{prefix} "


def _check_date(date: str) -> None:
    try:
        datetime.fromisoformat(date)
    except (TypeError, ValueError):
        raise ValueError(f"date must be a day such as '2025-04-10', but got {date!r}.") from None
