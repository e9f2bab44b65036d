"""Make any Lightning model forget, and prove it."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_unlearn.audit import *
    from lightning_unlearn.classification import *
    from lightning_unlearn.core import *
    from lightning_unlearn.dialogue import *
    from lightning_unlearn.diffusion import *
    from lightning_unlearn.language import *
    from lightning_unlearn.objectives import *
    from lightning_unlearn.reconstruction import *
    from lightning_unlearn.relearning import *
    from lightning_unlearn.report import *
    from lightning_unlearn.second_order import *
    from lightning_unlearn.smoothing import *
    from lightning_unlearn.stopping import *
    from lightning_unlearn.weights import *

__version__ = version("lightning-unlearn")

_PARTS = (
    *("core", "objectives", "smoothing", "weights", "second_order", "language", "classification", "diffusion"),
    *("reconstruction", "relearning", "stopping", "dialogue", "report", "audit"),
)


def _names() -> dict[str, str]:
    """The part that defines each public name. The parts are lazy, so this imports no method."""
    parts = {part: import_module(f"{__name__}.{part}") for part in _PARTS}
    return {name: part for part, module in parts.items() for name in module.__all__}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_names())
    if name.startswith("_") or name not in (names := _names()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{names[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})
