"""Batches of tokens of probes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.token_rows import TokenRows, collate_tokens
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.tokens import TokenRow, beginning

__all__ = ["prompt_ids", "token_batches", "token_rows"]

_BOUNDARY = 4


def token_rows(module: LitCausalLM, probes: Sequence[Probe], max_length: int = 512) -> list[TokenRow]:
    """Tokens of probes as a model is trained on them: a question in its prompt format, or a plain text.

    Args:
        module: The model, which has a tokenizer.
        probes: The rows.
        max_length: Longest row in tokens; it is cut there.

    Raises:
        ValueError: If the model has no tokenizer, or a row has no token left to learn.
    """
    prompt_format = _format(module)
    asked = [probe for probe in probes if not probe.is_text]
    conversations = [
        prompt_format.conversation(prompt_format.messages(probe.question), probe.answer) for probe in asked
    ]
    questions = iter(prompt_format.rows(conversations))
    rows = []
    for probe in probes:
        row = TokenRow([], _text_ids(module, _whole_text(probe))) if probe.is_text else next(questions)
        row = row._replace(answer=row.answer[: max(0, max_length - len(row.prompt))])
        if len(row.answer) < (2 if probe.is_text else 1):
            raise ValueError(f"Row {probe.row} has no token to learn within max_length={max_length}. Raise it.")
        rows.append(row)
    return rows


def token_batches(
    module: LitCausalLM, probes: Sequence[Probe], batch_size: int, max_length: int = 512
) -> list[dict[str, Tensor]]:
    """The rows in their order, padded on the right."""
    rows = TokenRows(token_rows(module, probes, max_length))
    return [
        collate_tokens([rows[i] for i in range(first, min(first + batch_size, len(rows)))])
        for first in range(0, len(rows), batch_size)
    ]


def prompt_ids(module: LitCausalLM, probes: Sequence[Probe]) -> list[list[tuple[int, ...]]]:
    """The tokens before the answer of each probe: as it is asked, and as it is written with its answer.

    The two differ where a token holds the end of the prompt and the beginning of the answer.
    """
    prompt_format = _format(module)
    asked = [probe for probe in probes if not probe.is_text]
    prompts = iter(prompt_format.prompts([probe.question for probe in asked]))
    written = iter(token_rows(module, asked, max_length=1 << 30))
    found = []
    for probe in probes:
        if probe.is_text:
            ids = _text_ids(module, str(probe.question).rstrip())
            # Its last tokens may be others where the text goes on.
            found.append([tuple(ids[: len(ids) - cut]) for cut in range(min(_BOUNDARY, len(ids)))])
        else:
            found.append(list(dict.fromkeys([tuple(next(prompts)), tuple(next(written).prompt)])))
    return found


def _whole_text(probe: Probe) -> str:
    """The beginning of a plain text and its continuation, as words of their own where nothing stands between."""
    first, rest = str(probe.question), probe.answer
    return f"{first} {rest}" if first[-1:].isascii() and first[-1:].isalnum() and rest[:1].isalnum() else first + rest


def _text_ids(module: LitCausalLM, text: str) -> list[int]:
    tokenizer = _format(module).tokenizer
    return [*beginning(tokenizer), *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def _format(module: LitCausalLM) -> PromptFormat:
    prompt_format = module._prompt_format()
    if prompt_format.tokenizer is None:
        raise ValueError("The model has no tokenizer. Pass LitCausalLM(..., tokenizer=...).")
    return prompt_format
