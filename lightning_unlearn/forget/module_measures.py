"""Likelihoods, hits and membership of the rows of a request under a user's module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lightning_unlearn.classification.metrics.mia import MIAEfficacy
from lightning_unlearn.classification.metrics.outputs import Outputs
from lightning_unlearn.core.batches import row_fingerprint
from lightning_unlearn.core.lightning import LightningModule, isolate_rng, overrides
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Predictions, PredictionScore
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.forget.score_choice import ScoreChoice

__all__ = ["Membership", "NamedRows", "RowMeasures", "measure", "membership", "shadow_attack"]

_LIMIT, _ALONE = 2000, 500  # rows of a set, drawn without replacement; where each is a batch of its own
_BATCH = 128


@dataclass(frozen=True)
class NamedRows:
    """A set of rows, as the user's loaders make batches of them.

    Args:
        rows: Map-style dataset.
        collate: Makes a batch of a list of rows.
        data: The data module, whose transfer hooks batches go through.
    """

    rows: Any
    collate: Callable[[list[Any]], Any]
    data: Any

    def drawn(self, seed: int, limit: int = _LIMIT) -> NamedRows:
        """At most so many of the rows, in order."""
        count = len(self.rows)
        if count <= limit:
            return self
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values
        return NamedRows(Subset(self.rows, chosen.tolist()), self.collate, self.data)

    def batches(self, size: int, shuffled: bool = False) -> HookedBatches:
        """Batches as the data module's transfer hooks leave them; those of the module are still to come."""
        loader = DataLoader(self.rows, size, shuffle=shuffled, collate_fn=self.collate)
        return HookedBatches(loader, self.data)


class HookedBatches:
    """Batches of a loader, after the transfer hooks of a data module."""

    def __init__(self, loader: DataLoader, data: Any) -> None:
        self.loader, self.data = loader, data

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
                if overrides(self.data, hook, "LightningDataModule"):
                    batch = getattr(self.data, hook)(batch, 0)
            yield batch


@dataclass(frozen=True)
class RowMeasures:
    """What a model says of the rows of a set.

    Args:
        nll: Negative log-likelihood of each row, or the module's own loss, shape ``(N,)``.
        hits: Share of a row's labels that are the likeliest class, shape ``(N,)``; ``None`` without logits.
        outputs: Logits and labels, where there is one label a row.
        prints: A fingerprint of the content of each row, shape ``(N,)``.
    """

    nll: Tensor
    hits: Tensor | None
    outputs: Outputs | None = None
    prints: Tensor | None = None

    def shared_with(self, other: RowMeasures) -> int:
        """How many of the rows are in another set as well, with the same content."""
        if self.prints is None or other.prints is None:
            return 0
        return int(torch.isin(self.prints, other.prints).sum())

    @property
    def mean_nll(self) -> float:
        """Mean over the rows."""
        return float(self.nll.mean())

    @property
    def accuracy(self) -> float | None:
        """Mean of the hits, in [0, 1]."""
        return None if self.hits is None else float(self.hits.mean())

    @property
    def classes(self) -> int | None:
        """Number of classes, where there is one label a row."""
        return None if self.outputs is None else self.outputs.logits.shape[1]


def measure(
    module: LightningModule, choice: ScoreChoice, sets: Mapping[str, NamedRows], seed: int
) -> dict[str, RowMeasures]:
    """Read the rows of each set off a module, in evaluation mode.

    Without logits each row is a batch of its own, since the module's loss is one number a batch.

    Args:
        module: The module, which does not change.
        choice: Its score.
        sets: The sets; of large ones some rows are drawn.
        seed: Seed of the draw, and of whatever is random in reading a row.

    Raises:
        ValueError: If a likelihood is not finite.
    """
    measured = {}
    limit, size = (_LIMIT, _BATCH) if choice.reads_logits else (_ALONE, 1)
    with isolate_rng(), evaluating(module), _silent(module):
        for name, rows in sets.items():
            torch.manual_seed(seed)
            batches = rows.drawn(seed, limit).batches(size)
            measured[name] = _joined([_read_with_prints(module, choice, batch) for batch in batches])
            if not torch.isfinite(measured[name].nll).all():
                count = int((~torch.isfinite(measured[name].nll)).sum())
                raise ValueError(f"The loss of {count} rows of the set {name!r} is not finite.")
    return measured


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Let a module log nothing, as it is in no run."""
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(module).pop("log", None)


def _read_with_prints(module: LightningModule, choice: ScoreChoice, batch: Any) -> RowMeasures:
    read, prints = _read(module, choice, transferred(module, batch)), row_fingerprint(batch)
    return replace(read, prints=prints if len(prints) == len(read.nll) else None)


def _read(module: LightningModule, choice: ScoreChoice, batch: Any) -> RowMeasures:
    if not isinstance(choice.score, PredictionScore):
        return RowMeasures(choice.score(module, batch).detach().float().cpu().reshape(-1), None)
    read: Predictions = choice.score.predictions(module, batch)
    right = (read.logits.argmax(1) == read.classes()).float()
    length = read.length().clamp_min(1)
    hits = torch.zeros(read.size, device=right.device).index_add_(0, read.rows.to(right.device), right) / length
    single = len(read.rows) == read.size and bool((read.length() == 1).all())
    outputs = Outputs(read.logits.float().cpu(), read.classes().cpu()) if single else None
    return RowMeasures((read.nll() / length).float().cpu(), hits.cpu(), outputs)


def _joined(parts: list[RowMeasures]) -> RowMeasures:
    hits = [part.hits for part in parts if part.hits is not None]
    outputs = [part.outputs for part in parts if part.outputs is not None]
    prints = [part.prints for part in parts if part.prints is not None]
    return RowMeasures(
        torch.cat([part.nll for part in parts]),
        torch.cat(hits) if len(hits) == len(parts) else None,
        Outputs(*map(torch.cat, zip(*outputs, strict=True))) if len(outputs) == len(parts) else None,
        torch.cat(prints) if len(prints) == len(parts) else None,
    )


@dataclass(frozen=True)
class Membership:
    """Membership inference by a threshold on the likelihood.

    Args:
        auc: Chance that a row to forget has a lower NLL than a row that was never seen; 0.5 tells nothing.
        error: Standard error of it.
    """

    auc: float
    error: float


def membership(forget: Tensor, unseen: Tensor) -> Membership:
    r"""How well a threshold on the NLL tells rows to forget from rows that were never seen.

    $$\mathrm{AUC} = P(\ell_f < \ell_u) + \tfrac12 P(\ell_f = \ell_u)$$

    Args:
        forget: NLL of the rows to forget, shape ``(F,)``.
        unseen: NLL of rows that the model was not trained on, shape ``(U,)``.

    Returns:
        The area, with its standard error where the two sets are alike.

    Example:
        >>> membership(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 0.2])).auc
        0.875
    """
    ordered = unseen.double().sort().values
    below = torch.searchsorted(ordered, forget.double(), right=False).double()
    upto = torch.searchsorted(ordered, forget.double(), right=True).double()
    auc = 1 - float(((below + upto) / 2).mean()) / len(unseen)
    f, u = len(forget), len(unseen)
    return Membership(auc, math.sqrt((f + u + 1) / (12 * f * u)))


def shadow_attack(sets: Mapping[str, RowMeasures], seed: int) -> float | None:
    """Share of rows to forget that an attack by confidence takes for rows that were never seen, in percent.

    It is fitted to retain rows and to rows that were never seen. ``None`` where there is not one label a row, or
    scikit-learn is missing.
    """
    outputs = [sets[name].outputs for name in ("retain", "test", "forget") if name in sets]
    if len(outputs) < 3 or any(part is None for part in outputs):
        return None
    metric = MIAEfficacy(("confidence",), "logistic", "random", None, seed, sync_on_compute=False)
    for part, role in zip(outputs, ("member", "nonmember", "forget"), strict=True):
        assert part is not None
        metric.update(*part, role)  # type: ignore[arg-type]
    try:
        return float(metric.compute()["confidence"])
    except ImportError:
        return None
