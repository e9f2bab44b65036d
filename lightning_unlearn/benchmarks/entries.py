"""Methods of the comparison on facts, with the settings that are tried for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_unlearn.benchmarks.runs import Description, describe

__all__ = ["FACTS", "QUESTIONS", "TEXT", "WEIGHTS", "Entry", "Setting"]


@dataclass(frozen=True)
class Setting:
    """A learning rate, callbacks, and the optimizer if it is not AdamW."""

    lr: float
    callbacks: tuple[Description, ...] = ()
    optimizer: Description | None = None


@dataclass(frozen=True)
class Entry:
    """A method and the settings that are tried for it."""

    name: str
    settings: tuple[Setting, ...]


_RATES = (1e-5, 5e-6, 2e-5)
_SPARSE_RATES = (5e-5, 2e-5, 1e-4)  # a tenth of the weights has to go further
_SOPHIA_RATES = (5e-6, 2e-6, 1e-5)  # about a third of AdamW's
_SOPHIA = describe("Sophia", weight_decay=0.01)  # the weight decay of the dense runs


def _entry(name: str, *rates: float, **arguments: Any) -> Entry:
    """An objective at each learning rate."""
    return Entry(name, tuple(Setting(lr, (describe(name, **arguments),)) for lr in rates or _RATES))


FACTS = (
    _entry("GradientAscent", 5e-6, 2e-6, 1e-5),
    *map(_entry, ("GradDiff", "KLMinimization", "IdkNLL", "NPO")),
    _entry("SimNPO", beta=2.5),
    *map(_entry, ("IdkDPO", "AltPO", "KTO", "WGA", "SatImp")),
    _entry("CEU", ignore_first=0),  # a fact is a token or two
    _entry("UNDIAL", 3e-5, 1e-5, 1e-4),
    *map(_entry, ("PDU", "ForgetKL", "TaskVector", "WhosHarryPotter")),
    # Five times the norm of the activations there, and one control vector for all seeds.
    _entry("RMU", 1e-3, 3e-4, 3e-3, layer="model.layers.7", steering=500.0, seed=0),
)
"""The published objectives, each with its published constants and three learning rates.

If the constants come with a learning rate for another size of model or other adapters (``UNDIAL``, ``RMU``, which
trains three matrices), the rates lie around what moves this model in 40 steps.
"""


def _beside(base: Entry) -> tuple[Entry, ...]:
    """An objective dense, under each mask, and with Sophia and SOUL."""
    objective = base.settings[0].callbacks
    masks = {name: (*objective, describe(name, density=0.1)) for name in ("RandomMask", "MagnitudeMask", "WAGLE")}
    masked = [
        Entry(f"{base.name} + {name}", tuple(Setting(lr, callbacks) for lr in _SPARSE_RATES))
        for name, callbacks in masks.items()
    ]
    soul = (*objective, describe("SOUL", every_n_steps=5, seed=0))  # all seeds draw the same labels
    return (base, *masked, Entry(f"{base.name} + SOUL", tuple(Setting(lr, soul, _SOPHIA) for lr in _SOPHIA_RATES)))


WEIGHTS = tuple(entry for base in FACTS if base.name in ("GradDiff", "NPO", "SimNPO") for entry in _beside(base))
"""Three of the objectives: dense, under masks that let a tenth of the weights move, and with Sophia and SOUL."""

_LEARNED_RATES = (1e-4, 2e-4)

QUESTIONS = (
    *(_entry(name, *_LEARNED_RATES) for name in ("GradDiff", "NPO")),
    _entry("SimNPO", *_LEARNED_RATES, beta=2.5),
    _entry("RMU", 1e-3, 3e-3, layer="model.layers.7", steering=500.0, seed=0),
    _entry("IdkNLL", *_LEARNED_RATES),
    _entry("UNDIAL", 3e-4, 1e-3),
    Entry(
        "SimNPO + WAGLE",
        tuple(Setting(lr, (describe("SimNPO", beta=2.5), describe("WAGLE", density=0.1))) for lr in (4e-4, 8e-4)),
    ),
    Entry(
        "NPO + SOUL",
        tuple(
            Setting(lr, (describe("NPO"), describe("SOUL", every_n_steps=5, seed=0)), _SOPHIA) for lr in (4e-5, 8e-5)
        ),
    ),
)
"""Methods of the published benchmarks: of a small model that has learned its rows at a rate of 3e-4."""

TEXT = tuple(entry for entry in QUESTIONS if entry.name != "IdkNLL")
"""Those that need no question to refuse."""
