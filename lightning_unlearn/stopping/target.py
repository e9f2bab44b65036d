"""Likelihood that rows have under a model that does not know them, measured on the starting model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn.core.batches import rows_in
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.core.rows import RowLoader, RunRows, on_device, row_loader
from lightning_unlearn.core.scores import PredictionScore, Score
from lightning_unlearn.functional.likelihood import IGNORE_INDEX

__all__ = ["Target", "chance_nll", "named_rows", "swapped_rows"]


class Target(NamedTuple):
    """What the forget rows are to reach.

    Args:
        nll: Negative log-likelihood per supervised position, in nats.
        source: Where the number is from, in words.
    """

    nll: float
    source: str


def named_rows(trainer: Trainer, name: str) -> RowLoader | None:
    """The rows of a role of the training data, or of a named set of the data module; ``None`` where there are none."""
    if name in ("forget", "retain"):
        return row_loader(trainer.train_dataloader, name)
    data = getattr(trainer, "datamodule", None)
    loaders: Mapping[str, Any] = data.set_loaders() if isinstance(data, ForgetRetainDataModule) else {}
    return row_loader(loaders, name)


def swapped_rows(loader: RowLoader, limit: int) -> RowLoader | None:
    """Rows with the question of one row and the answer of another, from token rows with a prompt.

    A row gets the supervised tokens of the next row that has other ones.

    Args:
        loader: The rows, batches with ``input_ids`` and ``labels`` ``(B, T)``.
        limit: At most so many rows, the first ones.

    Returns:
        The rows, or ``None`` where they are no token rows, have no prompt, or all have the same answer.
    """
    parts: list[tuple[list[int], list[int], list[int]]] = []
    size = 1
    for batch in loader.first(limit):
        if not isinstance(batch, Mapping) or not {"input_ids", "labels"} <= batch.keys():
            return None
        size = max(size, len(batch["input_ids"]))
        parts += [part for row in range(len(batch["input_ids"])) if (part := _cut(batch, row)) is not None]
    rows = []
    for number, (prompt, answer, _) in enumerate(parts):
        others = (parts[(number + step) % len(parts)] for step in range(1, len(parts)))
        other = next((part for part in others if part[1] != answer), None)
        if other is not None:
            rows.append((prompt + other[1], [IGNORE_INDEX] * len(prompt) + other[2]))
    if not rows:
        return None
    return row_loader({"swapped": DataLoader(rows, size, collate_fn=_padded)}, "swapped")  # type: ignore[arg-type]


def _cut(batch: Mapping[str, Any], row: int) -> tuple[list[int], list[int], list[int]] | None:
    """Prompt, answer and labels of the answer of a row; ``None`` where it has no prompt or no answer."""
    tokens, labels = batch["input_ids"][row], batch["labels"][row]
    if (mask := batch.get("attention_mask")) is not None:
        tokens, labels = tokens[mask[row].bool()], labels[mask[row].bool()]
    supervised = (labels != IGNORE_INDEX).nonzero().flatten().tolist()
    if not supervised or supervised[0] < 2:  # plain text: the first token is never predicted
        return None
    first, end = supervised[0], supervised[-1] + 1
    return tokens[:first].tolist(), tokens[first:end].tolist(), labels[first:end].tolist()


def _padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    width = max(len(tokens) for tokens, _ in rows)

    def table(values: Iterator[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in values])

    return {
        "input_ids": table((tokens for tokens, _ in rows), 0),
        "attention_mask": table(([1] * len(tokens) for tokens, _ in rows), 0),
        "labels": table((labels for _, labels in rows), IGNORE_INDEX),
    }


def chance_nll(trainer: Trainer, module: LightningModule, score: Score, rows: RunRows) -> float | None:
    """$\\log K$, the NLL of a guess among the classes of a classifier; ``None`` where the score gives no logits."""
    batch = next(iter(rows.loader.first(1)), None)
    if not isinstance(score, PredictionScore) or batch is None or not rows_in(batch):
        return None
    if isinstance(batch, Mapping) and "input_ids" in batch:
        return None  # nobody guesses among all tokens
    predictions = score.predictions(module, on_device(trainer, batch))
    return torch.tensor(float(predictions.logits.shape[-1])).log().item()


def no_target(forget: str) -> MisconfigurationException:
    """The error of a run that has nothing to take the target from."""
    return MisconfigurationException(
        f"StopWhenForgotten needs to know which likelihood rows have that the model never saw, but the run has no such "
        f"rows, and none can be made of the {forget} rows. Give the data module a set named 'never_seen' (heldout="
        "{'never_seen': ...}) or pass never_seen=DataLoader(...), rows of the same kind that the model was not trained "
        "on; or give the number itself: StopWhenForgotten(target=3.0), in nats per supervised token."
    )
