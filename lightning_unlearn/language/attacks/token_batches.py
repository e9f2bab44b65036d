"""Batches of tokens of probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.token_rows import TokenRows, collate_tokens
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.scored_rows import prompts_of, scored_rows
from lightning_unlearn.language.token_stats import format_of
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["prompt_ids", "token_batches", "token_rows"]


def token_rows(module: LitCausalLM, probes: Sequence[Probe], max_length: int = 512) -> list[TokenRow]:
    """Tokens of probes as a model is trained on them: a question with its answer, or a plain text.

    Args:
        module: The model, which has a tokenizer.
        probes: The rows.
        max_length: Longest row in tokens; it is cut there.

    Raises:
        TypeError: If the model has no tokenizer.
        ValueError: If a row has no token left to learn.
    """
    rows = []
    for probe, row in zip(probes, _whole_rows(module, probes), strict=True):
        if probe.is_text:
            row = TokenRow([], [*row.prompt, *row.answer])
        row = row._replace(answer=row.answer[: max(0, max_length - len(row.prompt))])
        if len(row.prompt) + len(row.answer) < 2 or not row.answer:
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

    The two differ if one token spans the end of the prompt and the beginning of the answer.
    """
    asked = prompts_of(format_of(module), probes)
    written = _whole_rows(module, probes)
    return [list(dict.fromkeys([tuple(a), tuple(w.prompt)])) for a, w in zip(asked, written, strict=True)]


def _whole_rows(module: LitCausalLM, probes: Sequence[Probe]) -> list[TokenRow]:
    whole = [replace(probe, target="") for probe in probes]
    return [row.tokens for row in scored_rows(format_of(module), whole, {"answer"})]
