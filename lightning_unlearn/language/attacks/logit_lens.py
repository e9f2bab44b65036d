"""Logit lens: answers decoded from the hidden states between blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn.core.lightning import isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.functional.language.depth_score import depth_score
from lightning_unlearn.functional.likelihood import row_sum, token_nll
from lightning_unlearn.language.attacks.attack import Cost
from lightning_unlearn.language.attacks.latent import (
    FixedDecoder,
    SpanBatch,
    read_span,
    span_batches,
    span_rows,
)
from lightning_unlearn.language.attacks.latent_evidence import SpanEvidence
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.probes import Probe

__all__ = ["LensReading", "LensScores", "LogitLens"]


@dataclass(frozen=True)
class LensReading:
    """What the lens reads from one model.

    Args:
        log_prob: Mean log-probability of the span's tokens after each block, shape ``(L, N)``.
        rank: Mean rank of them among the vocabulary, 0 for the likeliest, shape ``(L, N)``.
        hit: Share of them that are the likeliest, shape ``(L, N)``.
    """

    log_prob: Tensor
    rank: Tensor
    hit: Tensor


@dataclass(frozen=True)
class LensScores:
    """Readings of the lens on three models, and the depth to which the unlearned one lacks the fact.

    Args:
        scores: Shape ``(N,)``, by the formula of the depth score on the gaps of the lens: 1 as deep as the control, 0
            untouched; NaN where no layer of the control lacks what the original's has.
        original: Of the model before unlearning.
        control: Of the control model.
        unlearned: Of the unlearned model.
    """

    scores: Tensor
    original: LensReading
    control: LensReading
    unlearned: LensReading

    @property
    def mean(self) -> float:
        """Mean over the rows that have a score; NaN where none has."""
        return self.scores.nanmean().item()


class LogitLens(SpanEvidence):
    r"""Decodes the state after each block as if it were the last, at the positions that predict the answer.

    $$\log p_l(y_t) = \log \mathrm{softmax}(W\, \mathrm{norm}(h_{l,t}))_{y_t}$$

    with the final norm and the head $W$ of the *original* for all three models, so that a change of these does not hide
    what the blocks still encode. For the original, the last block must give the model's own logits, which is checked.

    Args:
        original: The model before unlearning.
        control: A model that never saw the rows, such as the retrained one.
        threshold: Gap from which a layer of the control counts for the score, in nats a token.
        batch_size: Rows in a pass; the states of all blocks are kept for each.

    Raises:
        ValueError: If the models differ in form, a number is out of range, or rows are plain texts.
        MisconfigurationException: If the final norm or the head of the original can't be found, or weights are sharded.

    References:
        Belrose et al., *Eliciting Latent Predictions from Transformers with the Tuned Lens*, arXiv:2303.08112.
    """

    name = "logit_lens"

    def __init__(
        self, original: LitCausalLM, control: LitCausalLM, threshold: float = 0.05, batch_size: int = 8
    ) -> None:
        super().__init__(original, control, threshold, batch_size)
        FixedDecoder(original)

    def __call__(self, module: LitCausalLM, probes: Sequence[Probe]) -> LensScores:
        """What the lens reads from an unlearned model, beside the original and the control.

        Args:
            module: The unlearned model.
            probes: Questions to the forget rows.
        """
        self._check(module, probes)
        original, control = self._once(probes, lambda: [self.read(m, probes) for m in (self.original, self.control)])
        unlearned = self.read(module, probes)
        gaps = [original.log_prob - reading.log_prob for reading in (control, unlearned)]
        return LensScores(depth_score(gaps[0], gaps[1], self.threshold), original, control, unlearned)

    def cost(self, rows: int) -> Cost:
        """One pass of each model."""
        return Cost(passes=3)

    @torch.no_grad()
    def read(self, module: LitCausalLM, probes: Sequence[Probe]) -> LensReading:
        """What the original's norm and head read from the states of a model."""
        decoder = FixedDecoder(self.original)
        rows = span_rows(self.original._prompt_format(), probes)
        with isolate_rng(), evaluating(self.original), evaluating(module):
            parts = [self._read(module, decoder, b) for b in span_batches(rows, self.batch_size, module.device)]
        return LensReading(*(torch.cat(values, 1) for values in zip(*parts, strict=True)))

    def _read(self, module: LitCausalLM, decoder: FixedDecoder, batch: SpanBatch) -> list[Tensor]:
        predictions, states = read_span(module, batch)
        labels = predictions.labels.to(self.original.device)
        at_span = [states[number][batch.rows, batch.columns].to(self.original.device) for number in range(len(states))]
        if module is self.original:
            decoder.check(at_span[-1], predictions.logits)
        by_layer = []
        for state in at_span:
            logits = decoder(state)
            own = logits.gather(1, labels[:, None])
            rank = (logits > own).sum(1).float()
            # Ties go to the first token, as argmax breaks them.
            values = (-token_nll(logits, labels), rank, (logits.argmax(1) == labels).float())
            by_layer.append([row_sum(value, predictions.rows.to(value.device), predictions.size) for value in values])
        length = predictions.length().cpu()
        return [torch.stack(layers).cpu() / length for layers in zip(*by_layer, strict=True)]
