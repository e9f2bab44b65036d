"""Comparison of the module's own loss with the likelihood that a method trains on."""

from __future__ import annotations

import torch

from lightning_unlearn.core.class_scores import CLASS_SCORES
from lightning_unlearn.core.lightning import LightningModule, rank_zero_warn
from lightning_unlearn.core.modes import kept_attributes, undisturbed
from lightning_unlearn.core.reading import likelihood
from lightning_unlearn.core.scores import Batch, Score, causal_lm_nll, training_step_loss

__all__ = ["warn_of_another_loss"]

_TOLERANCE, _COARSE = 1e-3, 2e-2  # of the loss, in fp32 and in a shorter type; sums in another order move it by less


def warn_of_another_loss(method: str, module: LightningModule, score: Score, batch: Batch) -> None:
    """Warn if the loss of ``training_step`` is not the mean likelihood that a method reads on a batch.

    Args:
        method: Name of the method.
        module: The user's module; its state is as before.
        score: What the method trains on; nothing is compared for scores of the user's own.
        batch: Rows of one role.
    """
    if not any(score is known for known in (*CLASS_SCORES, causal_lm_nll)) or getattr(module, "score", None) is score:
        return
    with kept_attributes(module), undisturbed(module):
        try:
            loss = training_step_loss(module, batch)
        except Exception:  # a training_step that cannot be called here says nothing about its loss
            return
        nll, length = likelihood(score, module, batch)
    own, tolerance = float(loss), _TOLERANCE if loss.dtype == torch.float32 else _COARSE
    means = float(nll.mean()), float(nll.sum() / length.sum())
    if own == own and all(abs(own - mean) > tolerance * max(abs(own), abs(mean)) + 1e-6 for mean in means):
        rank_zero_warn(
            f"{method} trains on {getattr(score, '__name__', score)}, {means[0]:.4g} on the first batch, and not on "
            f"the loss of {type(module).__name__}.training_step, {own:.4g}: class weights, label smoothing, "
            "augmentation of the batch and other terms are left out. GradientAscent, GradDiff and FineTune take the "
            "module's own loss with score=training_step_loss."
        )
