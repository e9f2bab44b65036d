"""KL minimization."""

from __future__ import annotations

from typing import Literal

from lightning_unlearn.core.callback import Reference
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.scores import Batch, Score, causal_lm_nll
from lightning_unlearn.objectives.grad_diff import GradDiff
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["KLMinimization"]

Positions = Literal["labels", "all"]


class KLMinimization(GradDiff):
    r"""Gradient ascent on the forget rows with a divergence from the original model on the retain rows.

    $$\mathcal{L} = -w_f \frac{\sum_b S_b}{\sum_b n_b}
      + w_r\, \mathbb{E}_t\, \mathrm{KL}\big(p_{ref}(\cdot|t)\,\|\,p_\theta(\cdot|t)\big)$$

    The expectation is under the reference. Several released codes reverse the direction, drop the entropy or feed raw
    logits; then the original model is not the minimum.

    Args:
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the divergence $w_r$.
        positions: Where the divergence is averaged: ``"labels"``: supervised tokens; ``"all"``: every token that is
            not padding, prompts included, as in TOFU's code (which counts padding too).
        max_forget_nll: Stop training once the mean forget NLL of a batch is above this many nats per token.
        score: Reads likelihoods and logits off the module.
        reference: How the original model is kept; logits take a snapshot, so ``"cache"`` is refused.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a weight is negative, or an option has no such value.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[KLMinimization()], logger=False, accelerator="cpu")

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """

    def __init__(
        self,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        positions: Positions = "labels",
        max_forget_nll: float | None = None,
        score: Score = causal_lm_nll,
        reference: Reference = "auto",
        keep_reference: bool = False,
    ) -> None:
        super().__init__(
            forget_weight,
            retain_weight,
            retain="kl",
            max_forget_nll=max_forget_nll,
            score=score,
            reference=reference,
        )
        self.keep_reference = keep_reference
        if reference == "cache":
            raise ValueError("KLMinimization compares logits, which are not cached: use reference='snapshot'.")
        self.positions = one_of("positions", positions, Positions)

    def retain_rows(self, rows: Batch) -> Batch:
        """Retain rows, supervised everywhere for ``positions="all"``."""
        if self.positions == "labels":
            return rows
        everywhere = rows["input_ids"]
        if "attention_mask" in rows:
            everywhere = everywhere.masked_fill(rows["attention_mask"] == 0, -100)
        return {**rows, "labels": everywhere}
