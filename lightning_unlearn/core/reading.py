"""Likelihoods and logits of the rows of each role, from one forward pass where rows can be joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.batches import as_mapping, named_tensors, row_count, rows_in
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score
from lightning_unlearn.functional.likelihood import IGNORE_INDEX

__all__ = ["Reading", "join", "likelihood", "read"]


class Reading(NamedTuple):
    """Likelihoods and logits of the rows of one role.

    Args:
        nll: Negative log-likelihood of each row, summed over its supervised positions, shape ``(B,)``, fp32.
        length: Supervised positions of each row, shape ``(B,)``, fp32.
        predictions: The logits behind them, where they were asked for.
        reference_nll: The same likelihoods under the original model, where the objective compares them.
        reference_logits: The logits of the original model at the same positions, where the objective compares those.
    """

    nll: Tensor
    length: Tensor
    predictions: Predictions | None = None
    reference_nll: Tensor | None = None
    reference_logits: Tensor | None = None


def read(
    score: Score, module: LightningModule, batches: Sequence[Batch], logits: bool = False, joinable: bool = True
) -> list[Reading]:
    """Read the rows of several roles.

    Args:
        score: Reads likelihoods off the module.
        module: The user's module.
        batches: Rows of each role.
        logits: Whether to return the predictions too; needs a `PredictionScore`.
        joinable: Whether rows of several roles may share a forward pass. Under batch normalization they would share
            their statistics.

    Returns:
        A reading for each role.
    """
    joinable = joinable and isinstance(score, PredictionScore) and len(batches) > 1
    joined = join(batches) if joinable and all(map(_has_rows, batches)) else None
    if joined is None:
        return [_read_one(score, module, batch, logits) for batch in batches]
    whole = _read_one(score, module, joined, logits)
    sizes = [row_count(batch) for batch in batches]
    return [
        Reading(nll, length, predictions)
        for nll, length, predictions in zip(
            whole.nll.split(sizes), whole.length.split(sizes), _split(whole.predictions, sizes), strict=True
        )
    ]


def likelihood(score: Score, module: LightningModule, batch: Batch) -> tuple[Tensor, Tensor]:
    """NLL of each row and its supervised positions, both ``(B,)``; 1 position where the score does not tell."""
    if isinstance(score, PredictionScore):
        predictions = score.predictions(module, batch)
        return predictions.nll(), predictions.length()
    nll = score(module, batch)
    if nll.dim() != 1:
        raise ValueError(
            f"score returned shape {tuple(nll.shape)} for {rows_in(batch)} rows. It must return one negative "
            "log-likelihood a row, shape (B,)."
        )
    return nll, torch.ones_like(nll.detach())


def _read_one(score: Score, module: LightningModule, batch: Batch, logits: bool) -> Reading:
    if not isinstance(score, PredictionScore):
        return Reading(*likelihood(score, module, batch))
    predictions = score.predictions(module, batch)
    return Reading(predictions.nll(), predictions.length(), predictions if logits else None)


def _has_rows(batch: Batch) -> bool:
    """Whether each tensor of a batch has one row for each example; the edges of graphs, for one, do not."""
    count = rows_in(batch)
    return count is not None and all(len(tensor) == count for _, tensor in named_tensors(batch))


def join(batches: Sequence[Any]) -> Any | None:
    """Stack the rows of several batches, so that one forward pass reads them all.

    Sequences (``input_ids``, ``attention_mask``, ``labels`` ... of shape ``(B, T)``) are padded to the longest.

    Args:
        batches: Batches of the same structure.

    Returns:
        One batch of the same structure, or ``None`` if they can't be stacked.
    """
    first = batches[0]
    if all(isinstance(b, Tensor) for b in batches):
        stackable = first.dim() > 0 and len({b.shape[1:] for b in batches}) == 1
        return torch.cat(list(batches)) if stackable else None
    if all(isinstance(b, Mapping) for b in batches) and all(b.keys() == first.keys() for b in batches):
        joined = _joined(batches)
        return joined if joined is None or isinstance(first, dict) else type(first)(joined)
    if is_dataclass(first) and len({type(b) for b in batches}) == 1:
        joined = _joined([as_mapping(b) for b in batches])
        return None if joined is None else replace(first, **joined)  # type: ignore[type-var]
    if all(isinstance(b, (tuple, list)) for b in batches) and len({len(b) for b in batches}) == 1:
        parts = [join(part) for part in zip(*batches, strict=True)]
        if any(part is None for part in parts):
            return None
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)  # a named tuple takes each
    return None


def _joined(batches: Sequence[Any]) -> dict[str, Any] | None:
    joined = {key: join(_padded([b[key] for b in batches], key)) for key in batches[0]}
    return None if any(value is None for value in joined.values()) else joined


def _padded(values: list[Any], key: str) -> list[Any]:
    if not all(isinstance(v, Tensor) and v.dim() == 2 and not v.is_floating_point() for v in values):
        return values
    width = max(v.shape[1] for v in values)
    fill = IGNORE_INDEX if key == "labels" else 0
    return [F.pad(v, (0, width - v.shape[1]), value=fill) for v in values]


def _split(predictions: Predictions | None, sizes: list[int]) -> list[Predictions | None]:
    if predictions is None:
        return [None] * len(sizes)
    edges = torch.tensor(sizes, device=predictions.rows.device).cumsum(0)
    counts = torch.diff(torch.searchsorted(predictions.rows, edges), prepend=edges.new_zeros(1)).tolist()
    starts = [0, *edges.tolist()]
    return [
        Predictions(logits, labels, rows - start, size)
        for logits, labels, rows, start, size in zip(
            predictions.logits.split(counts),
            predictions.labels.split(counts),
            predictions.rows.split(counts),
            starts[:-1],
            sizes,
            strict=True,
        )
    ]
