"""Reader of token statistics in batches, which computes common beginnings once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.distributed import Replica, gather_objects, replica
from lightning_unlearn.core.logit_chunks import ChunkedLogits, Places
from lightning_unlearn.functional.language.token_statistics import TokenStatistics, token_statistics
from lightning_unlearn.language.batching import Batch, common_head, plan
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.limits import check_ids
from lightning_unlearn.language.prefixes import PrefixModel, prefix_model
from lightning_unlearn.language.scored_rows import ScoredRow

__all__ = ["TokenReader"]


class TokenReader:
    """Runs batches of sequences, and reads the statistics of their labels.

    Args:
        module: The module, in evaluation mode.
        rows: Sequences with labels.
        max_tokens: Largest batch in tokens.
        batch_size: Largest batch in sequences.
        share: Whether to compute shared beginnings once.
    """

    def __init__(
        self, module: nn.Module, rows: Sequence[ScoredRow], max_tokens: int, batch_size: int | None, share: bool
    ) -> None:
        self.module = module
        self.sequences = [row.sequence() for row in rows]
        self.labelled = [row.labelled() for row in rows]
        self.device = next(module.parameters()).device
        self.sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        # Processes that hold parts of the weights have to make the same forward passes.
        self.share = Replica(0, 1) if self.sharded else replica(getattr(module, "_trainer", None))
        prompts = [tuple(row.tokens.prompt) for row in rows]
        self.prefixes = self._prefixes(prompts) if share and not self.sharded else None
        self.head = self.prefixes.head if self.prefixes is not None else None
        self.tokens = self.head.length if self.head is not None else 0
        self.chunks = ChunkedLogits(module)
        self.batches = plan(
            list(map(len, self.sequences)),
            prompts if self.prefixes is not None else None,
            max_tokens,
            batch_size,
            self.share.total,
            self.tokens,
        )

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
        # The last token before a label predicts it, so each sequence runs at least that one itself.
        head = common_head(self.sequences, min(places[0] for places in self.labelled) - 1)
        if not head and len(set(prompts)) == len(prompts):
            return None
        module: Any = self.module
        if isinstance(module, LitCausalLM) and type(module).forward is LitCausalLM.forward:
            if module._forward_hooks or module._forward_pre_hooks:
                return None
            # Its forward, which sees no whole sequence then, refuses what the model can't take.
            largest = max(max(sequence) for sequence in self.sequences)
            check_ids(module.model, torch.full((1, max(map(len, self.sequences)) - 1), largest), module._positions)
            module = module.model
        return prefix_model(module, max(map(len, self.sequences)), self.sequences[0][:head])

    def _plain(self, batch: Batch) -> dict[int, TokenStatistics]:
        if self.prefixes is None or self.head is None:
            ids, mask = self._padded(batch.rows, 0)
            return self._read(partial(self.module, input_ids=ids, attention_mask=mask), batch.rows)
        ids, mask = self._padded(batch.rows, self.head.length)
        return self._read(partial(self.prefixes.extend, ids, mask, self.head, [0] * len(ids)), batch.rows)

    def _shared(self, batch: Batch) -> dict[int, TokenStatistics]:
        assert self.prefixes is not None
        prefixes = list(dict.fromkeys(tuple(self.sequences[row][: batch.prefix]) for row in batch.rows))
        number = {prefix: i for i, prefix in enumerate(prefixes)}
        begun = self.head.length if self.head is not None else 0
        ids = torch.tensor([prefix[begun:] for prefix in prefixes], device=self.device)
        self.tokens += ids.numel()
        prefix = self.prefixes.begin(ids)
        found: dict[int, TokenStatistics] = {}
        for rows in batch.parts:
            chosen = [number[tuple(self.sequences[row][: batch.prefix])] for row in rows]
            ids, mask = self._padded(rows, batch.prefix)
            run = partial(self.prefixes.extend, ids, mask, prefix, chosen)
            found |= self._read(run, rows)
        return found

    def _padded(self, rows: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of sequences from a place on, without their last token, which predicts nothing."""
        parts = [self.sequences[row][start:-1] for row in rows]
        width = max(map(len, parts))
        self.tokens += width * len(parts)
        ids = torch.tensor([part + [0] * (width - len(part)) for part in parts], device=self.device)
        mask = torch.tensor([[1] * len(part) + [0] * (width - len(part)) for part in parts], device=self.device)
        return ids, mask

    def _read(self, run: Any, rows: Sequence[int]) -> dict[int, TokenStatistics]:
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

        self.chunks(run, places, keep)
        ordered = [parts[begin] for begin in sorted(parts)]
        whole = [torch.cat(values).float().cpu() for values in zip(*ordered, strict=True)]
        whole[3] = whole[3].bool()
        split = zip(*(values.split([len(self.labelled[row]) for row in rows]) for values in whole), strict=True)
        return {row: TokenStatistics(*(v.clone() for v in values)) for row, values in zip(rows, split, strict=True)}
