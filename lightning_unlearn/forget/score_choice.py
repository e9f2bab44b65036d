"""Choice of the score that reads a user's module, by what its outputs, its labels and its own loss say."""

from __future__ import annotations

import math
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch

from lightning_unlearn.core.checks import function
from lightning_unlearn.core.class_scores import binary_nll, segmentation_nll, soft_label_nll
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import kept_attributes, undisturbed
from lightning_unlearn.core.own_training import SkippedBatch
from lightning_unlearn.core.reading import likelihood
from lightning_unlearn.core.scores import PredictionScore, Score, classifier_nll, training_step_loss

__all__ = ["ScoreChoice", "choose_score", "given_score"]

_TOLERANCE = 1e-2  # of the loss; label smoothing and class weights move it by more
_AMBIGUOUS = (binary_nll, soft_label_nll)
"""Scores whose labels a regression may have as well: only the module's own loss tells."""


class ScoreChoice(NamedTuple):
    """How a module is read.

    Args:
        score: The score.
        path: Its import path.
        reason: Why this one, in words.
    """

    score: Score
    path: str
    reason: str

    @property
    def reads_logits(self) -> bool:
        """Whether there are logits, and so classes and accuracies."""
        return isinstance(self.score, PredictionScore)


def given_score(path: str) -> ScoreChoice:
    """A score that the user names.

    Args:
        path: Import path, or the name of one of this package, such as ``classifier_nll``.

    Raises:
        ValueError: If there is none.
    """
    full = path if "." in path else f"lightning_unlearn.{path}"
    try:
        score = resolve_name(full)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"There is no score {path!r}: {error}. Give the import path of a function (module, batch) -> NLL of shape "
            "(B,), or one of classifier_nll, binary_nll, segmentation_nll, soft_label_nll and training_step_loss."
        ) from None
    return ScoreChoice(function("score", score, "(module, batch) -> NLL of each row"), full, "as given")


def choose_score(module: LightningModule, batch: Any) -> ScoreChoice:
    """The score that reads a module: of class labels where there are logits, else the module's own loss.

    Args:
        module: The module, whose state does not change.
        batch: Rows of training, on its device.

    Raises:
        ValueError: If neither gives a finite number.
    """
    own, reason = _own_loss(module, batch)
    for score in (classifier_nll, segmentation_nll, binary_nll, soft_label_nll):
        means = _read(score, module, batch)
        if means is None:
            continue
        agrees = own is not None and any(math.isclose(own, mean, rel_tol=_TOLERANCE, abs_tol=1e-4) for mean in means)
        name = score.__name__  # type: ignore[attr-defined]
        if agrees:
            text = f"forward gives logits, and the loss of training_step, {own:.4g}, is their cross-entropy"
            return ScoreChoice(score, f"lightning_unlearn.{name}", text)
        if score in _AMBIGUOUS or _are_probabilities(module, batch):
            continue
        text = "forward gives logits of classes; " + (
            f"the loss of training_step differs ({own:.4g}, and not {means[0]:.4g}: class weights, label smoothing or "
            "other terms)"
            if own is not None
            else reason
        )
        return ScoreChoice(score, f"lightning_unlearn.{name}", text)
    if own is None:
        raise ValueError(
            f"{type(module).__name__} can't be read: its outputs and batches are none that a score of classes reads, "
            f"and {reason}. Give --score, the import path of a function (module, batch) -> NLL of shape (B,)."
        )
    text = f"the loss of training_step, {own:.4g} on the first rows; its outputs and labels are not those of classes"
    return ScoreChoice(training_step_loss, "lightning_unlearn.training_step_loss", text)


def _own_loss(module: LightningModule, batch: Any) -> tuple[float | None, str]:
    with kept_attributes(module), undisturbed(module):
        try:
            value = float(training_step_loss(module, batch))
        except SkippedBatch as error:
            return None, str(error)
        except Exception as error:
            return None, f"its training_step fails outside of a run ({type(error).__name__}: {error})"
    return (value, "") if math.isfinite(value) else (None, f"its training_step gives the loss {value}")


def _read(score: Score, module: LightningModule, batch: Any) -> tuple[float, float] | None:
    """Means by row and by position; ``None`` where the score does not read such batches."""
    with kept_attributes(module), undisturbed(module):
        try:
            nll, length = likelihood(score, module, batch)
        except Exception:
            return None
    means = float(nll.mean()), float(nll.sum() / length.sum())
    return means if all(map(math.isfinite, means)) else None


def _are_probabilities(module: LightningModule, batch: Any) -> bool:
    """Whether what a module gives as logits are probabilities already, so that a score of logits misreads it."""
    if _read(classifier_nll, module, batch) is None:
        return False
    with kept_attributes(module), undisturbed(module):
        logits = classifier_nll.predictions(module, batch).logits.float()
    sums = logits.sum(1)
    return bool((logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
