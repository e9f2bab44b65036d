"""Likelihood that rows have under a model that does not know them, measured on the starting model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.lightning import MisconfigurationException, Trainer
from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.core.rows import RowLoader, row_loader
from lightning_unlearn.core.scores import Predictions
from lightning_unlearn.functional.likelihood import row_sum

__all__ = ["Target", "level", "named_rows", "no_target", "runner_up_nll"]


class Target(NamedTuple):
    """What the forget rows are to reach.

    Args:
        nll: Negative log-likelihood per supervised position, in nats.
        source: Where the number is from, in words.
    """

    nll: float
    source: str


def level(nll: Tensor) -> float:
    """NLL of the mean probability of some rows, so that one that is known weighs more than one far out of reach.

    Args:
        nll: Negative log-likelihood per position of each row, shape ``(N,)``.

    Example:
        >>> level(torch.tensor([0.1, 60.0])), level(torch.tensor([5.0, 5.0]))  # their means are 30 and 5
        (0.793..., 5.0)
    """
    return math.log(len(nll)) - (-nll.double()).logsumexp(0).item()


def named_rows(trainer: Trainer, name: str) -> RowLoader | None:
    """The rows of a role of the training data, or of a named set of the data module; ``None`` where there are none."""
    if name in ("forget", "retain"):
        return row_loader(trainer.train_dataloader, name)
    data = getattr(trainer, "datamodule", None)
    loaders: Mapping[str, Any] = data.set_loaders() if isinstance(data, ForgetRetainDataModule) else {}
    return row_loader(loaders, name)


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


def no_target(score: str) -> MisconfigurationException:
    """The error of a run that has nothing to take the target from."""
    return MisconfigurationException(
        "StopWhenForgotten needs the likelihood of rows that the model never saw, but the run has none, and "
        f"score={score} gives no logits that would tell which wrong answer is the likeliest. Give the data module a "
        "set named 'never_seen' (heldout={'never_seen': ...}) or pass never_seen=DataLoader(...), rows of the same "
        "kind that the model was not trained on; or give the number, in nats: StopWhenForgotten(target=3.0)."
    )
