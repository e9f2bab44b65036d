"""Likelihood that rows have under a model that does not know them, measured on the original model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.scores import Predictions, PredictionScore
from lightning_unlearn.functional.likelihood import row_sum
from lightning_unlearn.stopping.watched_rows import WatchedRows

__all__ = ["Target", "level", "measured_target", "runner_up_nll"]


class Target(NamedTuple):
    """What the forget rows are to reach.

    Args:
        nll: Negative log-likelihood per supervised position, in nats.
        source: Where the number is from, in words.
    """

    nll: float
    source: str


_UNSEEN, _WRONG = "of never-seen rows", "of the likeliest wrong answers"


def level(nll: Tensor) -> float:
    """NLL of the mean probability of some rows, so that one that is known weighs more than one far out of reach.

    Args:
        nll: Negative log-likelihood per position of each row, shape ``(N,)``.

    Example:
        >>> level(torch.tensor([0.1, 60.0])), level(torch.tensor([5.0, 5.0]))  # their means are 30 and 5
        (0.793..., 5.0)
    """
    return math.log(len(nll)) - (-nll.double()).logsumexp(0).item()


def runner_up_nll(predictions: Predictions) -> Tensor:
    r"""NLL of the best wrong answer of each row, shape ``(B,)``: at each position of the likeliest class but the label.

    It is at most $\log K$, that of a guess among all classes, and a mean over the positions of a row.

    Args:
        predictions: Logits ``(N, K)`` and labels.

    Example:
        >>> logits = torch.tensor([[1.0, 1.0, 0.0], [9.0, 0.0, 0.0]])
        >>> runner_up_nll(Predictions(logits, torch.tensor([0, 0]), torch.tensor([0, 1]), 2))
        tensor([0.8620, 1.0986])
    """
    logits = predictions.logits.float()
    values, classes = logits.topk(2, dim=1)
    first_is_right = classes[:, 0] == predictions.classes()
    wrong = torch.where(first_is_right, values[:, 1], values[:, 0])
    nll = (logits.logsumexp(1) - wrong).clamp(max=math.log(logits.shape[1]))
    return row_sum(nll, predictions.rows, predictions.size) / predictions.length().clamp(min=1)


def measured_target(module: LightningModule, forget: WatchedRows, never_seen: WatchedRows | None = None) -> Target:
    """The level of rows that the model never saw, or of the best wrong answers to the forget rows, if that is lower.

    A model that gives a row no more than its best wrong answer does not prefer it any longer. Never-seen rows may be
    further out of reach than that, as invented names are, and to follow them there would only do damage.

    Args:
        module: The module before its first update.
        forget: Rows to forget.
        never_seen: Rows that it never saw, where there are some.

    Raises:
        MisconfigurationException: If there are none, and the score gives no logits that tell wrong answers.
    """
    score, unseen = forget.score, None if never_seen is None else level(never_seen.nll(module))
    if not isinstance(score, PredictionScore):
        if unseen is not None:
            return Target(unseen, _UNSEEN)
        raise MisconfigurationException(
            "StopWhenForgotten needs the likelihood of rows that the model never saw, but the run has none, and "
            f"score={getattr(score, '__name__', score)} gives no logits that would tell which wrong answer is the "
            "likeliest. Give the data module a set named 'never_seen' (heldout={'never_seen': ...}) or pass "
            "never_seen=DataLoader(...), rows of the same kind that the model was not trained on; or give the number, "
            "in nats: StopWhenForgotten(target=3.0)."
        )

    def best_wrong(batch: Any) -> Tensor:
        return runner_up_nll(score.predictions(module, batch))

    wrong = level(forget.read(module, best_wrong))
    if unseen is None:
        return Target(wrong, _WRONG)
    return (
        Target(unseen, _UNSEEN) if unseen <= wrong else Target(wrong, f"{_WRONG}; never-seen rows are at {unseen:.2f}")
    )
