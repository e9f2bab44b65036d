"""What the comparisons on the demo's facts run."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["FACTS", "WEIGHTS", "Entry"]


class Entry(NamedTuple):
    """A method and the settings it is tuned over.

    Args:
        name: Its name in the table.
        settings: Each a dict with ``lr``, ``callbacks``, a list of ``{"class_path": ..., "init_args": ...}`` as in a
            YAML file, and, if it is not AdamW, ``optimizer``; the first one counts where two do equally well.
    """

    name: str
    settings: tuple[dict[str, Any], ...]


_RATES = (1e-5, 5e-6, 2e-5)


def _callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning_unlearn.{name}", "init_args": arguments}


def _entry(name: str, *rates: float, **arguments: Any) -> Entry:
    """An objective over learning rates."""
    return Entry(name, tuple({"lr": rate, "callbacks": [_callback(name, **arguments)]} for rate in rates))


FACTS: tuple[Entry, ...] = (
    _entry("GradientAscent", 5e-6, 2e-6, 1e-5),
    _entry("GradDiff", *_RATES),
    _entry("KLMinimization", *_RATES),
    _entry("IdkNLL", *_RATES),
    _entry("NPO", *_RATES),
    _entry("SimNPO", *_RATES, beta=2.5),
    _entry("IdkDPO", *_RATES),
    _entry("AltPO", *_RATES),
    _entry("KTO", *_RATES),
    _entry("WGA", *_RATES),
    _entry("SatImp", *_RATES),
    _entry("CEU", *_RATES, ignore_first=0),  # a fact is a token or two
    _entry("UNDIAL", 3e-5, 1e-5, 1e-4),
    _entry("PDU", *_RATES),
    _entry("ForgetKL", *_RATES),
    _entry("TaskVector", *_RATES),
    _entry("WhosHarryPotter", *_RATES, reinforced="reinforced"),
    _entry("RMU", 1e-3, 3e-4, 3e-3, layer="model.layers.7", steering=500.0),  # five times the norm there
)
"""The published objectives, each with its published constants and three learning rates.

Where the constants come with a learning rate for another size of model or other adapters (``UNDIAL``, ``RMU``, which
trains three matrices), the rates lie around what moves this model in 40 steps.
"""

_MASKS = ("RandomMask", "MagnitudeMask", "WAGLE")
_DENSITY = 0.1
_SPARSE_RATES = (5e-5, 2e-5, 1e-4)  # a tenth of the weights has to go further


def _beside(base: Entry) -> tuple[Entry, ...]:
    """An objective dense, under each mask, and with Sophia."""
    objective = base.settings[0]["callbacks"]
    masked = tuple(
        Entry(
            f"{base.name} + {mask}",
            tuple({"lr": rate, "callbacks": [*objective, _callback(mask, density=_DENSITY)]} for rate in _SPARSE_RATES),
        )
        for mask in _MASKS
    )
    # The weight decay of the dense runs. Sophia's own rate is about a third of AdamW's.
    optimizer = {"class_path": "lightning_unlearn.Sophia", "init_args": {"weight_decay": 0.01}}
    second_order = tuple(
        {"lr": rate, "callbacks": [*objective, _callback("SOUL", every_n_steps=5)], "optimizer": optimizer}
        for rate in (5e-6, 2e-6, 1e-5)
    )
    return (base, *masked, Entry(f"{base.name} + SOUL", second_order))


WEIGHTS: tuple[Entry, ...] = tuple(
    entry for base in FACTS if base.name in ("GradDiff", "NPO", "SimNPO") for entry in _beside(base)
)
"""Three of the objectives: dense, under masks that let a tenth of the weights move, and with Sophia and SOUL."""
