"""Token statistics of sequences: one forward pass from which every likelihood metric is read."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import Replica, gather_objects, replica
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.logit_chunks import ChunkedLogits, Places
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.functional.language.token_statistics import TokenStatistics, token_statistics
from lightning_unlearn.language.batching import Batch, plan
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.prefixes import PrefixModel, prefix_model
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.scored_rows import Kind, ScoredRow, scored_rows
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["TokenStats", "TokenStatsList", "token_stats"]

MAX_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class TokenStats:
    """What a model finds of the tokens of one answer; tensors on the CPU.

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

    Sequences of like length run together. Where several answers go on from the same prompt, it is computed once, if the
    model keeps the keys and values of all tokens. The output layer is run on answer tokens only, a chunk of them at a
    time. Processes of a distributed run share the rows, and each returns all of them.

    Args:
        module: A [`LitCausalLM`][lightning_unlearn.LitCausalLM], any other module around a causal language model, or
            the model itself, on its device.
        items: Probes; or ``(prompt ids, answer ids)`` of each sequence.
        answers: Of probes, which answers to score: ``"answer"``, ``"paraphrased"``, ``"perturbed"``, or several of
            them. A probe without such an answer has no such record.
        max_tokens: Largest batch in tokens.
        batch_size: Largest batch in sequences.
        prompt_format: How questions of probes are asked; by default as the module asks them.
        share_prefixes: Whether shared prompts are computed once.

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
        records, result.tokens = _Reader(module, scored, max_tokens, batch_size, share_prefixes).read()
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
    ids = [[_sequence(row)[place] for place in row.labelled()] for row in rows]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True) if tokenizer is not None else [""] * len(ids)
    return [
        TokenStats(
            *record, torch.tensor(labels), text, row.row, row.kind, row.choice,
            ended=labels[-1] in ends if ends else True,
        )
        for row, record, labels, text in zip(rows, records, ids, texts, strict=True)
    ]  # fmt: skip


def _sequence(row: ScoredRow) -> list[int]:
    return [*row.tokens.prompt, *row.tokens.answer]


class _Reader:
    """Runs batches of sequences, and reads the statistics of their labels.

    Args:
        module: The module, in evaluation mode.
        rows: Sequences with labels.
        max_tokens: Largest batch in tokens.
        batch_size: Largest batch in sequences.
        share: Whether to compute shared prompts once.
    """

    def __init__(
        self, module: nn.Module, rows: Sequence[ScoredRow], max_tokens: int, batch_size: int | None, share: bool
    ) -> None:
        self.module = module
        self.sequences = [_sequence(row) for row in rows]
        self.labelled = [row.labelled() for row in rows]
        self.device = next(module.parameters()).device
        self.sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        # Processes that hold parts of the weights have to make the same forward passes.
        self.share = Replica(0, 1) if self.sharded else replica(getattr(module, "_trainer", None))
        prompts = [tuple(row.tokens.prompt) for row in rows]
        self.prefixes = self._prefixes(prompts) if share and not self.sharded else None
        self.chunks = ChunkedLogits(module)
        self.prefix_chunks = ChunkedLogits(self.prefixes.model) if self.prefixes is not None else None
        self.batches = plan(
            list(map(len, self.sequences)),
            prompts if self.prefixes is not None else None,
            max_tokens,
            batch_size,
            self.share.total,
        )
        self.tokens = 0

    def read(self) -> tuple[list[TokenStatistics], int]:
        """Statistics of each sequence, in order, and the tokens that were computed by all processes."""
        own: dict[int, TokenStatistics] = {}
        for batch in self.batches[self.share.rank :: self.share.total]:
            own |= self._shared(batch) if batch.prefix else self._plain(batch)
        found: dict[int, TokenStatistics] = {}
        tokens: dict[int, int] = {}
        for rank, records, count in gather_objects((self.share.rank, own, self.tokens)):
            found |= records
            tokens[rank] = count
        return [found[number] for number in range(len(self.sequences))], sum(tokens.values())

    def _prefixes(self, prompts: Sequence[tuple[int, ...]]) -> PrefixModel | None:
        if len(set(prompts)) == len(prompts):
            return None
        module: Any = self.module
        if isinstance(module, LitCausalLM) and type(module).forward is LitCausalLM.forward:
            if module._forward_hooks or module._forward_pre_hooks:
                return None
            module = module.model
        return prefix_model(module, max(map(len, self.sequences)))

    def _plain(self, batch: Batch) -> dict[int, TokenStatistics]:
        ids, mask = self._padded(batch.rows, 0)

        run = partial(self.module, input_ids=ids, attention_mask=mask)
        return self._read(self.chunks, run, batch.rows)

    def _shared(self, batch: Batch) -> dict[int, TokenStatistics]:
        assert self.prefixes is not None
        assert self.prefix_chunks is not None
        prefixes = list(dict.fromkeys(tuple(self.sequences[row][: batch.prefix]) for row in batch.rows))
        number = {prefix: i for i, prefix in enumerate(prefixes)}
        ids = torch.tensor(prefixes, device=self.device)
        self.tokens += ids.numel()
        prefix = self.prefixes.begin(ids)
        found: dict[int, TokenStatistics] = {}
        for rows in batch.parts:
            chosen = [number[tuple(self.sequences[row][: batch.prefix])] for row in rows]
            ids, mask = self._padded(rows, batch.prefix)
            run = partial(self.prefixes.extend, ids, mask, prefix, chosen)
            found |= self._read(self.prefix_chunks, run, rows)
        return found

    def _padded(self, rows: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of sequences from a place on, without their last token, which predicts nothing."""
        parts = [self.sequences[row][start:-1] for row in rows]
        width = max(map(len, parts))
        self.tokens += width * len(parts)
        ids = torch.tensor([part + [0] * (width - len(part)) for part in parts], device=self.device)
        mask = torch.tensor([[1] * len(part) + [0] * (width - len(part)) for part in parts], device=self.device)
        return ids, mask

    def _read(self, chunks: ChunkedLogits, run: Any, rows: Sequence[int]) -> dict[int, TokenStatistics]:
        """Statistics of the labels of a padded batch."""
        # From the end, as some adapters put virtual tokens before a sequence.
        width = max(len(self.sequences[row]) - 1 for row in rows)
        places: Places = (
            torch.tensor([i for i, row in enumerate(rows) for _ in self.labelled[row]], device=self.device),
            torch.tensor([place - 1 - width for row in rows for place in self.labelled[row]], device=self.device),
        )
        labels = torch.tensor(
            [self.sequences[row][place] for row in rows for place in self.labelled[row]], device=self.device
        )
        parts: dict[int, TokenStatistics] = {}

        def keep(logits: Tensor, part: slice) -> None:
            with torch.autocast(logits.device.type, enabled=False):
                parts[part.start] = token_statistics(logits, labels[part].to(logits.device))

        chunks(run, places, keep)
        ordered = [parts[begin] for begin in sorted(parts)]
        whole = [torch.cat(values).float().cpu() for values in zip(*ordered, strict=True)]
        whole[3] = whole[3].bool()
        split = zip(*(values.split([len(self.labelled[row]) for row in rows]) for values in whole), strict=True)
        return {row: TokenStatistics(*(v.clone() for v in values)) for row, values in zip(rows, split, strict=True)}
