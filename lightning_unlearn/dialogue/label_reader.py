"""Reader of label probabilities: one forward pass a prompt, of which shared beginnings are computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.scores import head_only_at
from lightning_unlearn.dialogue.heads import groups_by_head
from lightning_unlearn.dialogue.label_tokens import LabelTokens
from lightning_unlearn.functional.dialogue.expected_score import label_log_probs
from lightning_unlearn.language.batching import plan
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.limits import check_ids
from lightning_unlearn.language.prefixes import Prefix, PrefixModel, prefix_model

__all__ = ["LabelReader"]

_HEADS = 4  # whose keys and values are kept

Node = tuple[int, ...]
"""Beginning of a label, after which the next token is read."""


class LabelReader:
    """Reads the probabilities of labels after prompts.

    A sequence runs for each prompt, and where labels of several tokens begin alike one more for each beginning, which
    goes on from the keys and values of the prompt. The output layer is run at the last token of each. The reader keeps
    the keys and values of the latest beginnings that prompts share, so it is for the weights that the model has now.

    Args:
        lm: The model, in evaluation mode.
        max_tokens: Largest batch in tokens.
        share_prefixes: Whether shared beginnings are computed once.

    Attributes:
        tokens: Tokens that forward passes have computed, padding among them.
        rows: Sequences that forward passes have run to read from.
    """

    def __init__(self, lm: LitCausalLM, max_tokens: int, share_prefixes: bool = True) -> None:
        self.lm, self.max_tokens = lm, max_tokens
        sharded = any(isinstance(parameter, DTensor) for parameter in lm.parameters())
        self.share = share_prefixes and not sharded and not lm._forward_hooks and not lm._forward_pre_hooks
        self.tokens = self.rows = 0
        self._heads: dict[tuple[int, ...], PrefixModel] = {}
        self._latest: list[int] = []
        self._unshared: float = math.inf  # length from which on sequences can't go on from a prefix

    @torch.no_grad()
    def read(self, prompts: Sequence[Sequence[int]], labels: LabelTokens, whole: bool = False) -> Tensor:
        """Log-probability of each label after each prompt, within the whole vocabulary.

        Args:
            prompts: Token ids, up to the cue.
            labels: The labels after the cue.
            whole: Whether all tokens of a label count also where the first one tells it.

        Returns:
            Shape ``(N, L)``, fp32, on the CPU. Where the first tokens tell the labels, those of the first tokens.
        """
        tails = [tail if whole or not labels.first_tokens else tail[:1] for tail in labels.tails]
        nodes: dict[Node, list[int]] = {}
        for tail in tails:
            for place, token in enumerate(tail):
                following = nodes.setdefault(tail[:place], [])
                if token not in following:
                    following.append(token)
        begun = [labels.prompt(prompt) for prompt in prompts]
        self._check(begun, nodes)
        found = torch.zeros(len(prompts), sum(map(len, nodes.values())))
        for rows, head in self._groups(begun):
            found[rows] = self._group([begun[row] for row in rows], head, nodes)
        columns = iter(found.unbind(1))
        step = {node: {token: next(columns) for token in following} for node, following in nodes.items()}
        return label_log_probs(tails, step)

    def _check(self, prompts: Sequence[Sequence[int]], nodes: dict[Node, list[int]]) -> None:
        largest = max(max(prompt) for prompt in prompts)
        longest = max(map(len, prompts)) + max(map(len, nodes))
        check_ids(self.lm.model, torch.full((1, longest), largest), self.lm._positions)

    def _groups(self, prompts: list[list[int]]) -> list[tuple[list[int], int]]:
        """Prompts that are read together, and how many tokens they share."""
        if not self.share:
            return [(list(range(len(prompts))), 0)]
        # With the latest prompt before, a few prompts show what all of a run share.
        groups = groups_by_head([*prompts, *([self._latest] if self._latest else [])])
        self._latest = prompts[-1]
        own = [([row for row in rows if row < len(prompts)], head) for rows, head in groups]
        return [(rows, min(head, *(len(prompts[row]) - 1 for row in rows))) for rows, head in own if rows]

    def _group(self, prompts: list[list[int]], head: int, nodes: dict[Node, list[int]]) -> Tensor:
        sequences = [[*prompt, *node] for prompt in prompts for node in nodes]
        wanted = [following for _ in prompts for following in nodes.values()]
        several = len(nodes) > 1
        model = self._prefix_model(prompts, head, max(map(len, sequences))) if head or several else None
        begun = model.head if model is not None else None
        length = begun.length if begun is not None else 0
        found: dict[int, Tensor] = {}
        owners = [tuple(prompt) for prompt in prompts for _ in nodes] if several and model is not None else None
        for batch in plan(list(map(len, sequences)), owners, self.max_tokens, head=length):
            if not batch.prefix:
                found |= self._read(model, sequences, batch.rows, wanted, begun, {})
                continue
            assert model is not None
            starts = {row: tuple(sequences[row][: batch.prefix]) for row in batch.rows}
            numbers = {start: number for number, start in enumerate(dict.fromkeys(starts.values()))}
            prefix = model.begin(self._ids([start[length:] for start in numbers]))
            chosen = {row: numbers[start] for row, start in starts.items()}
            for part in batch.parts:
                found |= self._read(model, sequences, part, wanted, prefix, chosen)
        size = len(nodes)
        return torch.stack([torch.cat([found[size * i + j] for j in range(size)]) for i in range(len(prompts))])

    def _prefix_model(self, prompts: Sequence[Sequence[int]], head: int, longest: int) -> PrefixModel | None:
        if not self.share or longest >= self._unshared:
            return None
        if not head:
            return self._tried(prefix_model(self.lm.model, longest), longest)
        key = tuple(prompts[0][:head])
        for begun, kept in self._heads.items():
            # One that is a little shorter is not worth another pass.
            if key[: len(begun)] == begun and len(begun) >= 0.9 * head:
                return kept
        model = self._tried(prefix_model(self.lm.model, longest, key), longest)
        self.tokens += head
        if model is not None:
            self._heads[key] = model
            while len(self._heads) > _HEADS:
                del self._heads[next(iter(self._heads))]
        return model

    def _tried(self, model: PrefixModel | None, longest: int) -> PrefixModel | None:
        if model is None:
            self._unshared = min(self._unshared, longest)
        return model

    def _read(
        self,
        model: PrefixModel | None,
        sequences: Sequence[Sequence[int]],
        rows: Sequence[int],
        wanted: Sequence[Sequence[int]],
        prefix: Prefix | None,
        chosen: dict[int, int],
    ) -> dict[int, Tensor]:
        """Log-probabilities of the wanted tokens after some sequences."""
        start = prefix.length if prefix is not None else 0
        parts = [sequences[row][start:] for row in rows]
        ids, lengths = self._ids(parts), [len(part) for part in parts]
        mask = self._ids([[1] * length for length in lengths])
        places = torch.arange(len(parts), device=ids.device)
        last = torch.tensor(lengths, device=ids.device) - 1
        self.rows += len(rows)
        with head_only_at(self.lm.model, places, last):
            if model is not None and prefix is not None:
                output: Any = model.extend(ids, mask, prefix, [chosen.get(row, 0) for row in rows])
            else:
                output = self.lm(input_ids=ids, attention_mask=mask)
        logits = output.logits if output.logits.dim() == 2 else output.logits[places, last]
        counts = [len(wanted[row]) for row in rows]
        tokens = torch.tensor([token for row in rows for token in wanted[row]], device=logits.device)
        owners = torch.arange(len(rows), device=logits.device).repeat_interleave(
            torch.tensor(counts, device=logits.device)
        )
        values = logits.float().log_softmax(-1)[owners, tokens].cpu().split(counts)
        return dict(zip(rows, values, strict=True))

    def _ids(self, parts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids, padded with 0 on the right."""
        width = max(map(len, parts))
        self.tokens += width * len(parts)
        padded = [[*part, *[0] * (width - len(part))] for part in parts]
        return torch.tensor(padded, device=next(self.lm.parameters()).device)
