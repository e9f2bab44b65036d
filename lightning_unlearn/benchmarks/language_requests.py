"""Sequential requests: forget rows that arrive in parts, and what remains of earlier parts after each one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_unlearn.benchmarks.language_base import evenly, token_rows_of
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.functional.language.extraction import extraction_strength
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.token_stats import token_stats

__all__ = ["after_requests", "in_requests"]

Rows = Sequence[dict[str, Any]]

MEASURED = 60
"""Rows to keep that are measured after each request, spread evenly."""


def in_requests(rows: Rows, count: int) -> list[Rows]:
    """Divide rows into ``count`` parts, in their order, whose sizes differ by at most one.

    Args:
        rows: The forget rows.
        count: Number of requests.

    Raises:
        ValueError: If there are more requests than rows.

    Example:
        >>> [len(part) for part in in_requests([{"text": "a"}] * 7, 3)]
        [3, 2, 2]
    """
    if at_least("requests", count, 1) > len(rows):
        raise ValueError(f"Each request has a row at least, but there are {count} requests for {len(rows)} rows.")
    size, more = divmod(len(rows), count)
    ends = [size * (i + 1) + min(i + 1, more) for i in range(count)]
    return [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def after_requests(module: LitCausalLM, requests: Sequence[Rows], retain: Rows) -> dict[str, list[float]]:
    """What a model knows of the rows of each request that it has had, and of rows to keep.

    Args:
        module: The model after the last of the requests.
        requests: The rows of each.
        retain: Rows to keep; none where there are none.

    Returns:
        ``strength``: mean extraction strength of each request's rows; ``loss``: mean negative log-likelihood per token
        of each in nats; ``retain_loss``: that of the rows to keep, in a list of one, or of none.
    """
    found: dict[str, list[float]] = {"strength": [], "loss": [], "retain_loss": []}
    for rows in requests:
        stats = token_stats(module, token_rows_of(module, rows))
        strengths = [extraction_strength(part.hit, drop_last=part.ended) for part in stats]
        found["strength"].append(float(torch.stack(strengths).mean()))
        found["loss"].append(_loss(stats))
    if retain:
        found["retain_loss"].append(_loss(token_stats(module, token_rows_of(module, evenly(retain, MEASURED)))))
    return found


def _loss(stats: Sequence[Any]) -> float:
    return float(torch.stack([-part.log_prob.mean() for part in stats]).mean())
