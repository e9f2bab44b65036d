"""Evidence of a request about a user's module: measurements before and after, relearning, and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lightning_unlearn.core.lightning import PACKAGES, LightningModule, isolate_rng, overrides, resolve
from lightning_unlearn.core.scores import Score
from lightning_unlearn.forget.module_measures import NamedRows, RowMeasures, membership, shadow_attack
from lightning_unlearn.forget.module_verdict import Criterion
from lightning_unlearn.forget.user_data import DataModuleSplit
from lightning_unlearn.relearning import RelearningAttack, RelearningCurve
from lightning_unlearn.report.charts import Curve, Series
from lightning_unlearn.report.measurements import Anchors, Interval, Measurement
from lightning_unlearn.report.sections import Part, Section
from lightning_unlearn.report.tables import Table

__all__ = [
    "SETS",
    "outcome_section",
    "own_metrics",
    "own_metrics_of",
    "own_section",
    "relearn",
    "relearning_section",
    "threshold_section",
]

SETS = {
    "forget": "rows to forget",
    "test_forget": "rows of the class never seen",
    "retain": "rows to keep",
    "test": "rows never seen",
}
"""Names of the measured sets in a report."""

_STEPS, _EVERY, _ROWS = 60, 5, 256

Measures = Mapping[str, RowMeasures]


def relearn(
    unlearned: LightningModule,
    original: LightningModule,
    control: LightningModule,
    rows: NamedRows,
    score: Score,
    rate: float,
    seed: int,
) -> RelearningCurve:
    """Fine-tune copies of the three models on the rows to forget, and watch their loss.

    Args:
        unlearned: The model after.
        original: The model before.
        control: A model that never saw the rows.
        rows: The rows to forget.
        score: The loss is the mean of it.
        rate: Learning rate of Adam.
        seed: Seed of rows and order.
    """
    attack = RelearningAttack(
        partial(torch.optim.Adam, lr=rate), max_steps=_STEPS, every_n_steps=_EVERY, score=score, seed=seed
    )
    batches = rows.drawn(seed, _ROWS).batches(32, shuffled=True)
    return attack(unlearned, batches, control=control, original=original)


def own_metrics(module: LightningModule, data: DataModuleSplit, accelerator: str) -> dict[str, float]:
    """What the module itself logs in validation and test on the user's loaders; empty where it has neither.

    Args:
        module: The module.
        data: The user's data module.
        accelerator: Device, as the Trainer names it.
    """
    package = next(p for p in PACKAGES if isinstance(module, p.LightningModule))
    logger = resolve("loggers.logger.DummyLogger", package)()  # modules call methods of theirs, such as add_image
    found: dict[str, float] = {}
    for function, step, loader in (("validate", "validation_step", "val"), ("test", "test_step", "test")):
        given = overrides(data.user.module, f"{loader}_dataloader", "LightningDataModule")
        if not given or not overrides(module, step, "LightningModule"):
            continue
        quiet = {"logger": logger, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = package.Trainer(accelerator=accelerator, devices=1, enable_model_summary=False, **quiet)
        with isolate_rng():
            torch.manual_seed(data.seed)
            logged = getattr(trainer, function)(module, datamodule=data, verbose=False)
        found |= {name: float(value) for metrics in logged for name, value in metrics.items()}
    return found


def own_metrics_of(
    models: Mapping[str, LightningModule], data: DataModuleSplit, accelerator: str
) -> tuple[dict[str, dict[str, float]], str]:
    """What each of several modules logs itself, and why there is nothing where that fails.

    Args:
        models: The modules.
        data: The user's data module.
        accelerator: Device, as the Trainer names it.
    """
    try:
        return {name: own_metrics(module, data, accelerator) for name, module in models.items()}, ""
    except Exception as error:  # steps of the user, in a Trainer without the user's callbacks and logger
        return {name: {} for name in models}, f"{type(error).__name__}: {error}"


# ---- sections --------------------------------------------------------------------------------------------------------


def outcome_section(before: Measures, after: Measures, control: Measures | None, seed: int) -> Section:
    """Accuracy and likelihood of each set, and membership inference, beside those of the other models."""
    parts: list[Part] = []
    for name, words in SETS.items():
        if name not in after:
            continue
        forgotten, n = "forget" in name, len(after[name].nll)
        models = [None if m is None else m.get(name) for m in (before, control)]
        if after[name].accuracy is not None:
            old, other = (None if m is None else m.accuracy for m in models)
            better: Any = ("closer to control" if control is not None else "lower") if forgotten else "higher"
            parts.append(
                Measurement(
                    words,
                    after[name].accuracy,
                    None,
                    n,
                    "share",
                    "accuracy",
                    better,
                    Anchors(old, other, _chance(after)),
                )
            )
        old, other = (None if m is None else m.mean_nll for m in models)
        better = ("closer to control" if control is not None else "higher") if forgotten else "lower"
        variant = "NLL" if after[name].hits is not None else "loss"
        unit = "nats" if after[name].hits is not None else ""
        parts.append(Measurement(words, after[name].mean_nll, None, n, unit, variant, better, Anchors(old, other)))
    parts += _membership_parts(before, after, control, seed)
    return Section("outcome", "Before and after", parts)


def _chance(measures: Measures) -> float | None:
    classes = measures["forget"].classes
    return None if classes is None else 1 / classes


def _membership_parts(before: Measures, after: Measures, control: Measures | None, seed: int) -> list[Part]:
    unseen = "test_forget" if "test_forget" in after else "test"
    if unseen not in after:
        reason = "the data module gives no rows that the model never saw"
        return [Measurement("membership inference", None, variant="AUC", outcome="not run", reason=reason)]
    found = membership(after["forget"].nll, after[unseen].nll)
    others = [None if m is None else membership(m["forget"].nll, m[unseen].nll).auc for m in (before, control)]
    spread = 1.96 * found.error
    interval = Interval(max(0.0, found.auc - spread), min(1.0, found.auc + spread), method="normal")
    anchors = Anchors(others[0], others[1], 0.5)
    count = len(after["forget"].nll)
    parts: list[Part] = [
        Measurement("membership inference", found.auc, interval, count, "", "AUC", "closer to control", anchors)
    ]
    rates = [None if m is None else shadow_attack(m, seed) for m in (after, before, control)]
    if rates[0] is not None:
        shares = [None if rate is None else rate / 100 for rate in rates]
        parts.append(
            Measurement(
                "membership inference",
                shares[0],
                None,
                count,
                "share",
                "taken for rows never seen, attack by confidence",
                "closer to control" if control is not None else "higher",
                Anchors(shares[1], shares[2]),
            )
        )
    return parts


def threshold_section(found: Sequence[Criterion]) -> Section:
    """The thresholds of the verdict, and what was measured against them."""
    rows = [[c.name, c.threshold, c.measured, c.outcome] for c in found]
    table = Table("Thresholds", ["what", "threshold", "measured", "outcome"], rows)
    return Section("thresholds", "What the verdict rests on", [table])


def relearning_section(curve: RelearningCurve) -> Section:
    """Loss on the rows to forget while they are learned again."""
    curves: list[tuple[str, Any, RelearningCurve | None]] = [
        ("unlearned", "unlearned", curve),
        ("retrained", "control", curve.control),
        ("before", "original", curve.original),
    ]
    series = [Series(name, [*map(float, c.steps)], [*c.values], role=role) for name, role, c in curves if c is not None]
    note = "Copies are fine-tuned on the rows to forget. A model that never saw them needs time, too."
    part = Curve("Learning the rows again", "step", "loss on the rows to forget", series, "line", "", note)
    return Section("relearning", "Relearning", [part])


def own_section(
    before: Mapping[str, float], after: Mapping[str, float], control: Mapping[str, float] | None
) -> Section:
    """What the module itself logs on the user's validation and test rows."""
    names = sorted({*before, *after, *(control or {})})
    columns = ["metric", "before", "after", *(["retrained"] if control is not None else [])]
    sides = [before, after, *([control] if control is not None else [])]
    rows: list[list[Any]] = [[name, *(_finite(side.get(name)) for side in sides)] for name in names]
    note = "As the module logs them in validation_step and test_step, on the loaders of its data module."
    return Section(
        "own", "The module's own metrics", [Table("Validation and test", columns, rows, note)] if rows else []
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
