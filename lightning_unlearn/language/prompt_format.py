"""Prompt formats: questions and answers as the tokens that a language model reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any, NamedTuple

__all__ = ["PromptFormat", "TokenRow"]

_PLAIN = "Question: {question}\nAnswer: "


class TokenRow(NamedTuple):
    """Tokens of a row; its labels are those of the answer.

    Args:
        prompt: Tokens without a label; none in plain text.
        answer: Tokens with a label.
        continues_answer: Whether the prompt ends with the beginning of the answer.
    """

    prompt: list[int]
    answer: list[int]
    continues_answer: bool = False


@dataclass(frozen=True)
class PromptFormat:
    r"""The format in which a language model is asked a question, the same in training, generation and evaluation.

    The question goes into the tokenizer's chat template, up to where the assistant's turn begins. A tokenizer without
    one gets ``"Question: {question}\nAnswer: "``. White space at the end of a plain prompt belongs to the first token
    of the answer, as in running text.

    Args:
        tokenizer: A Hugging Face tokenizer. A data module also takes the hub id or folder of one, and where none is
            given it takes the model's own.
        system_prompt: System message of the chat template; by default the template's own.
        prompt_format: A format string with ``{question}``, used in place of the chat template.

    Raises:
        ValueError: If ``prompt_format`` has another field than ``{question}``, or a system prompt has no chat template
            to go into.

    Example:
        >>> PromptFormat(prompt_format="[INST] {question} [/INST]").text("Where is Lima?")
        '[INST] Where is Lima? [/INST]'
    """

    tokenizer: Any = None
    system_prompt: str | None = None
    prompt_format: str | None = None

    def __post_init__(self) -> None:
        if self.prompt_format is None:
            return
        fields = {name for _, name, *_ in Formatter().parse(self.prompt_format) if name is not None}
        if fields != {"question"}:
            raise ValueError(
                f"prompt_format must contain {{question}} and no other field, but got {self.prompt_format!r}."
            )
        if self.system_prompt:
            raise ValueError(
                "system_prompt is a part of the chat template, which prompt_format replaces. Write it into "
                "prompt_format, or leave one of the two out."
            )

    @property
    def is_chat(self) -> bool:
        """Whether questions go into the tokenizer's chat template."""
        return self.prompt_format is None and bool(getattr(self.tokenizer, "chat_template", None))

    def text(self, question: str) -> str:
        """The prompt, up to where the answer begins."""
        if not self.is_chat:
            if self.system_prompt:
                raise ValueError(
                    "The tokenizer has no chat template for system_prompt to go into. Leave it out, or pass "
                    "prompt_format with the text before the question."
                )
            return self._plain.format(question=question).rstrip()
        messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        messages.append({"role": "user", "content": question})
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def prompt(self, question: str) -> list[int]:
        """Token ids up to where the answer begins."""
        # A chat template writes the special tokens itself.
        return self.tokenizer(self.text(question), add_special_tokens=not self.is_chat)["input_ids"]

    def answer(self, answer: str, begins: bool = True) -> list[int]:
        """Token ids of an answer and the end of sequence.

        Args:
            answer: The answer.
            begins: Whether it follows the prompt, and not the beginning of an answer.
        """
        if begins and not self.is_chat:
            answer = self._plain[len(self._plain.rstrip()) :] + answer
        return [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def row(self, question: str, answer: str, target: str | None = None) -> TokenRow:
        """Tokens of a question with its answer.

        Args:
            question: The question.
            answer: The whole answer.
            target: The part of the answer that gets labels; what comes before it belongs to the prompt, and what comes
                after it is left out. By default all of the answer.
        """
        prompt = self.prompt(question)
        if not target:
            return TokenRow(prompt, self.answer(answer))
        before = answer[: answer.index(target)]
        context = before.rstrip()
        if not context:
            return TokenRow(prompt, self.answer(before + target)[:-1])
        return TokenRow(
            prompt + self.answer(context)[:-1],
            self.answer(before[len(context) :] + target, begins=False)[:-1],
            continues_answer=True,
        )

    @property
    def _plain(self) -> str:
        return self.prompt_format or _PLAIN
