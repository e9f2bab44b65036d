"""Token statistics of sequences, from one forward pass that serves every likelihood metric."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.functional.language.token_statistics import TokenStatistics
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.scored_rows import Kind, ScoredRow, scored_rows
from lightning_unlearn.language.token_reader import TokenReader
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["TokenStats", "TokenStatsList", "token_stats"]

MAX_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class TokenStats:
    """A model's statistics of the tokens of one answer; tensors on the CPU.

    Args:
        log_prob: Log-probability of each token, shape ``(n,)``, fp32, in nats.
        mean: Mean log-probability of all tokens of the vocabulary under the model's distribution at each place, shape
            ``(n,)``, fp32.
        variance: Its variance, shape ``(n,)``, fp32.
        hit: Whether each token is the most likely one, shape ``(n,)``, boolean.
        ids: The tokens, shape ``(n,)``, int64.
        text: The tokens as text, without special ones.
        index: Number of the row.
        kind: Which of the row's answers it is: ``"answer"``, ``"paraphrased"`` or ``"perturbed"``.
        choice: Number of the perturbed answer.
        ended: Whether the last token ends the answer; metrics of memorisation leave it out.
    """

    log_prob: Tensor
    mean: Tensor
    variance: Tensor
    hit: Tensor
    ids: Tensor
    text: str = ""
    index: int = 0
    kind: Kind = "answer"
    choice: int = 0
    ended: bool = True

    def __len__(self) -> int:
        return len(self.log_prob)

    @property
    def zlib_length(self) -> int:
        """Bytes of the text compressed by zlib, at its default level."""
        return len(zlib.compress(self.text.encode()))


class TokenStatsList(list[TokenStats]):
    """Records of sequences, in the order of the rows.

    Attributes:
        skipped: Sequences without a token to score, which have no record.
        tokens: Tokens that the forward passes computed, padding among them.
        row_tokens: Tokens of all sequences, each counted whole.
    """

    skipped: int = 0
    tokens: int = 0
    row_tokens: int = 0


@torch.no_grad()
def token_stats(
    module: nn.Module,
    items: Sequence[Probe] | Sequence[TokenRow] | Sequence[tuple[Sequence[int], Sequence[int]]],
    answers: Kind | Collection[Kind] = "answer",
    max_tokens: int = MAX_TOKENS,
    batch_size: int | None = None,
    prompt_format: PromptFormat | None = None,
    share_prefixes: bool = True,
) -> TokenStatsList:
    """Statistics of the answer tokens of some rows, from one forward pass over them.

    Sequences of similar length run together. If the model keeps the keys and values of all tokens, the common beginning
    of all sequences, such as a system prompt, is computed once, and so is a prompt with several answers. The output
    layer runs on answer tokens only, in chunks. Processes of a distributed run share the rows, and each returns all of
    them.

    Args:
        module: A [`LitCausalLM`][lightning_unlearn.LitCausalLM], any other module around a causal language model, or
            the model itself, on its device.
        items: Probes; or ``(prompt ids, answer ids)`` of each sequence.
        answers: Of probes, which answers to score: ``"answer"``, ``"paraphrased"``, ``"perturbed"``, or several of
            them. A probe without such an answer has no such record.
        max_tokens: Largest batch in tokens.
        batch_size: Largest batch in sequences.
        prompt_format: How questions of probes are asked; by default as the module asks them.
        share_prefixes: Whether shared beginnings are computed once.

    Returns:
        A record of each sequence, in order: all of a row together, first its answer, then the paraphrased one, then the
        perturbed ones.

    Raises:
        ValueError: If there is no row, a number is out of range, or a target is not in its answer.
        TypeError: If the module does not say how to ask questions, and ``prompt_format`` is not given.
    """
    at_least("max_tokens", max_tokens, 1)
    if batch_size is not None:
        at_least("batch_size", batch_size, 1)
    if not items:
        raise ValueError("There is no row to score. Give at least one.")
    rows = _rows(module, items, {answers} if isinstance(answers, str) else set(answers), prompt_format)
    scored = [row for row in rows if row.labelled()]
    result = TokenStatsList()
    result.skipped = len(rows) - len(scored)
    if result.skipped:
        rank_zero_warn(
            f"{result.skipped} of {len(rows)} sequences have no answer token, and are left out of the statistics."
        )
    if not scored:
        return result
    # A compiled model would not see the hooks, or be compiled anew for every number of tokens.
    with evaluating(module), torch.compiler.set_stance("force_eager"):
        records, result.tokens = TokenReader(module, scored, max_tokens, batch_size, share_prefixes).read()
    result.row_tokens = sum(len(row.tokens.prompt) + len(row.tokens.answer) for row in scored)
    result += _named(scored, records, _ends_and_tokenizer(module, prompt_format))
    return result


def format_of(module: nn.Module, prompt_format: PromptFormat | None = None) -> PromptFormat:
    """The prompt format that is given, or that of the module.

    Raises:
        TypeError: If there is none.
    """
    if prompt_format is not None:
        return prompt_format
    if isinstance(module, LitCausalLM):
        found = module._prompt_format()
        if found.tokenizer is not None:
            return found
        raise TypeError(
            "The LitCausalLM has no tokenizer to ask questions with. Pass LitCausalLM(..., tokenizer=...), or "
            "prompt_format=PromptFormat(tokenizer)."
        )
    raise TypeError(
        f"A {type(module).__name__} does not say how questions are asked. Pass prompt_format=PromptFormat(tokenizer)."
    )


def _rows(
    module: nn.Module, items: Sequence[Any], kinds: set[Kind], prompt_format: PromptFormat | None
) -> list[ScoredRow]:
    unknown = kinds - {"answer", "paraphrased", "perturbed"}
    if unknown or not kinds:
        raise ValueError(
            f"answers must be some of 'answer', 'paraphrased' and 'perturbed', but got {sorted(unknown or kinds)}."
        )
    if isinstance(items[0], Probe):
        return scored_rows(format_of(module, prompt_format), items, kinds)
    rows = [item if isinstance(item, TokenRow) else TokenRow(_ints(item[0]), _ints(item[1])) for item in items]
    return [ScoredRow(row, number) for number, row in enumerate(rows)]


def _ints(ids: Iterable[int]) -> list[int]:
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)


def _ends_and_tokenizer(module: nn.Module, prompt_format: PromptFormat | None) -> tuple[set[int], Any]:
    """Tokens that end an answer, and what makes text of tokens."""
    if prompt_format is None and isinstance(module, LitCausalLM):
        prompt_format = module._prompt_format()
    if prompt_format is None or prompt_format.tokenizer is None:
        return set(), None
    return set(prompt_format.ends), prompt_format.tokenizer


def _named(
    rows: Sequence[ScoredRow], records: Sequence[TokenStatistics], known: tuple[set[int], Any]
) -> list[TokenStats]:
    ends, tokenizer = known
    sequences = [row.sequence() for row in rows]
    ids = [[tokens[place] for place in row.labelled()] for row, tokens in zip(rows, sequences, strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True) if tokenizer is not None else [""] * len(ids)
    return [
        TokenStats(
            *record, torch.tensor(labels), text, row.row, row.kind, row.choice,
            ended=labels[-1] in ends if ends else True,
        )
        for row, record, labels, text in zip(rows, records, ids, texts, strict=True)
    ]  # fmt: skip
