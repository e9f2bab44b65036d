"""Depth score: the original model continues from the hidden states of another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn.core.lightning import isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.functional.language.depth_score import depth_score
from lightning_unlearn.language.attacks.attack import Cost
from lightning_unlearn.language.attacks.latent import (
    SpanBatch,
    blocks_of,
    going_on_from,
    read_span,
    span_batches,
    span_log_prob,
    span_rows,
)
from lightning_unlearn.language.attacks.latent_evidence import SpanEvidence
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.probes import Probe

__all__ = ["DepthScore", "DepthScores"]


@dataclass(frozen=True)
class DepthScores:
    """Depth scores of rows.

    Args:
        scores: Shape ``(N,)``: 1 as deep as the control, 0 untouched; NaN where the states of no layer of the control
            lack the fact.
        control_gaps: What the original loses with the control's states, shape ``(L, N)``, nats a token.
        unlearned_gaps: The same with the unlearned model's states.
    """

    scores: Tensor
    control_gaps: Tensor
    unlearned_gaps: Tensor

    @property
    def mean(self) -> float:
        """Mean over the rows that have a score; NaN where none has."""
        return self.scores.nanmean().item()

    @property
    def n(self) -> int:
        """Number of rows with a score."""
        return int(self.scores.isfinite().sum())


class DepthScore(SpanEvidence):
    r"""Unlearning depth score (UDS): how far the layers of the unlearned model lack a fact that the control lacks.

    The hidden states after a block, at the positions that predict the fact in the answer, are patched from the control
    model into the original. The loss in mean log-probability of the fact is $d^C_l$. Patching from the unlearned model
    gives $d^U_l$, and [`depth_score`][lightning_unlearn.functional.language.depth_score.depth_score] compares the two.
    The score sees knowledge that later layers hide from the answer.

    States are read by hooks on the blocks. The authors' script reads ``hidden_states``, the last of which has already
    passed the final norm. Only the blocks after the patched one are run.

    Args:
        original: The model before unlearning, which the states go into.
        control: A model that never saw the rows, such as the retrained one.
        threshold: Gap from which a layer of the control counts, in nats a token.
        batch_size: Rows in a pass; the states of all blocks are kept for each.

    Raises:
        ValueError: If the models differ in form, a number is out of range, or rows are plain texts.
        MisconfigurationException: If weights are sharded, or no blocks are found.

    References:
        The released code of the unlearning depth score, https://github.com/gnueaj/unlearning-depth-score.
    """

    name = "depth_score"

    def __call__(self, module: LitCausalLM, probes: Sequence[Probe]) -> DepthScores:
        """Depth scores of an unlearned model.

        Args:
            module: The unlearned model.
            probes: Questions to the forget rows.
        """
        self._check(module, probes)
        control, unlearned = self._once(probes, lambda: self._gaps(self.control, probes)), self._gaps(module, probes)
        return DepthScores(depth_score(control, unlearned, self.threshold), control, unlearned)

    def cost(self, rows: int) -> Cost:
        """About half a pass for each block and each of the two sources, and one of each model."""
        return Cost(passes=len(blocks_of(self.original)) + 4)

    @torch.no_grad()
    def _gaps(self, source: LitCausalLM, probes: Sequence[Probe]) -> Tensor:
        """Loss of likelihood when the original continues from the states of another model, ``(L, N)``."""
        rows = span_rows(self.original._prompt_format(), probes)
        with isolate_rng(), evaluating(self.original), evaluating(source):
            parts = [
                self._gaps_of_batch(source, batch)
                for batch in span_batches(rows, self.batch_size, self.original.device)
            ]
        return torch.cat(parts, 1)

    def _gaps_of_batch(self, source: LitCausalLM, batch: SpanBatch) -> Tensor:
        blocks, places = blocks_of(self.original), (batch.rows, batch.columns)
        predictions, own = read_span(self.original, batch)
        moved = SpanBatch({k: v.to(source.device) for k, v in batch.inputs.items()}, batch.rows, batch.columns)
        _, theirs = read_span(source, moved)
        plain, gaps = span_log_prob(predictions), []
        for number in range(len(blocks)):
            state = own[number].clone()
            given = theirs[number].to(state)
            state[places] = given[places]
            with going_on_from(blocks, number, own, state):
                patched = causal_lm_nll.predictions(self.original, batch.inputs)
            gaps.append((plain - span_log_prob(patched)).cpu())
        return torch.stack(gaps)
