"""Rankings of methods that the published UnlearnCanvas study found, and whether results reproduce them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean

import torch
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from lightning_unlearn.benchmarks.canvas_published import ATTACKED, PAIRS, RESULTS, published_name
from lightning_unlearn.benchmarks.canvas_results import KINDS, CanvasResults
from lightning_unlearn.benchmarks.canvas_tables import methods_of
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.report.sections import Cell, Section, Table

__all__ = ["orderings", "spearman"]

Row = list[Cell]


def orderings(results: CanvasResults) -> Section | None:
    """A table of the published rankings that the results can reproduce; ``None`` if there are too few methods."""
    rows = [
        *(row for kind in KINDS for row in _erasure(results, kind)),
        *(row for kind in KINDS for row in _attacks(results, kind)),
        *_pairs(results),
        *_sequences(results),
    ]
    note = (
        "Spearman's correlations are over methods. One holds if fewer than 5 % of random pairings of the methods have "
        "one as strong; weaker ones are undecided. The published figures are of nine methods."
    )
    table = Table("", ["ordering", "published", "here", "holds"], rows, note)
    return Section("orderings", "Do the published orderings hold?", [table]) if rows else None


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation.

    Example:
        >>> spearman([1, 2, 3], [10, 30, 20])
        0.5
    """
    value = spearman_corrcoef(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64))
    return round(float(value), 4)  # the library adds 1e-6 to a denominator


def _erasure(results: CanvasResults, kind: Kind) -> Iterator[Row]:
    methods = methods_of(results, kind)
    if len(methods) < 3:
        return
    ours = {m: {name: results.summaries[m][f"{kind}/{name}"].value for name in ("UA", "IRA", "CRA")} for m in methods}
    theirs = {method: row.shares(kind) for method, row in RESULTS.items()}
    there, here = ([[row[name] for row in of.values()] for name in ("UA", "IRA")] for of in (theirs, ours))
    ordering = f"{kind}s: what erases more keeps less (UA, IRA)"
    yield [ordering, _rho(spearman(*there)), _rho(spearman(*here)), _same_sign(-1, *here)]
    cra, ira = ([mean(row[name] for row in of.values()) for of in (theirs, ours)] for name in ("CRA", "IRA"))
    words = [f"{100 * low:.1f} and {100 * high:.1f}" for low, high in zip(cra, ira, strict=True)]
    yield [f"{kind}s: mean CRA is below mean IRA", *words, cra[1] < ira[1]]
    shared = {method: name for method in methods if (name := published_name(method))}
    if len(shared) >= 3:
        both = [ours[method]["UA"] for method in shared], [theirs[name]["UA"] for name in shared.values()]
        ordering = f"{kind}s: methods rank by UA as published"
        yield [ordering, f"{len(shared)} methods", _rho(spearman(*both)), _same_sign(1, *both)]


def _same_sign(sign: int, x: Sequence[float], y: Sequence[float]) -> bool | str:
    """Whether a rank correlation has a sign, by a permutation test at 5 %; ``"undecided"`` if it is not clear of 0."""
    x_ranks, y_ranks = (_centred_ranks(torch.tensor(values, dtype=torch.float64)) for values in (x, y))
    draws = torch.rand(10_000, len(x_ranks), generator=torch.Generator().manual_seed(0)).argsort(1)
    strength = float(x_ranks @ y_ranks)
    as_strong = (y_ranks[draws] @ x_ranks) * math.copysign(1, strength) >= abs(strength) - 1e-9
    return strength * sign > 0 if float(as_strong.double().mean()) < 0.05 else "undecided"


def _centred_ranks(values: Tensor) -> Tensor:
    below, equal = (values[:, None] > values).sum(1), (values[:, None] == values).sum(1)
    ranks = below + (equal + 1) / 2
    return ranks - ranks.mean()


def _attacks(results: CanvasResults, kind: Kind) -> Iterator[Row]:
    rates = {method: results.attack(method, kind) for method in methods_of(results, kind)}
    attacked = {method: of for method, of in rates.items() if "asr" in of}
    if not attacked:
        return
    clean = {method: 1 - of["pre_asr"][1].value for method, of in attacked.items() if "pre_asr" in of}
    fallen = sum(1 - attacked[method]["asr"][1].value < value for method, value in clean.items())
    falls = [getattr(row, f"{kind}_attacked") < getattr(row, f"{kind}_clean") for row in ATTACKED.values()]
    yield [f"{kind}s: attacks lower UA", _of(sum(falls), len(falls)), _of(fallen, len(clean)), fallen == len(clean)]
    random = {method: of["random_asr"][1].value for method, of in attacked.items() if "random_asr" in of}
    if random:
        above = sum(attacked[method]["asr"][1].value > value for method, value in random.items())
        name = f"{kind}s: attacks find more than random tokens"
        yield [name, "not reported", _of(above, len(random)), above == len(random)]


def _pairs(results: CanvasResults) -> Iterator[Row]:
    means = results.pair_means
    if not means:
        return
    below = sum(max(row["SC"].value, row["OC"].value) < row["UP"].value for row in means.values())
    there = sum(max(row.sc, row.oc) < row.up for row in PAIRS.values())
    yield [
        "pairs: style and object alone suffer more than unrelated prompts (SC, OC below UP)",
        *(_of(there, len(PAIRS)), _of(below, len(means)), below == len(means)),
    ]


def _sequences(results: CanvasResults) -> Iterator[Row]:
    found = results.sequences
    if not found:
        return
    fallen = sum(bool(sequence.ra[-1] < sequence.ra[0]) for sequence in found.values())
    name = "sequences: retain accuracy falls with further requests"
    yield [name, "reported", _of(fallen, len(found)), fallen == len(found)]
    back = sum(bool(sequence.rebound[:-1].max() > 0) for sequence in found.values() if len(sequence.targets) > 1)
    yield ["sequences: earlier targets come back", "reported", _of(back, len(found)), back > 0]


def _of(count: int, total: int) -> str:
    return f"{count} of {total} methods"


def _rho(value: float) -> str:
    return f"ρ = {value:.2f}".replace("-", "−")
