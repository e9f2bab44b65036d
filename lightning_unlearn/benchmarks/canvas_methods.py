"""Methods of the UnlearnCanvas benchmark on the miniature."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_unlearn.benchmarks.erasers import ERASERS, Eraser
from lightning_unlearn.benchmarks.runs import Description, describe

__all__ = ["METHODS", "PUBLISHED", "CanvasMethod"]

PUBLISHED = ("ESD", "FMN", "UCE", "CA", "SalUn", "SEOT", "SPM", "EDiff", "SHS")
"""The methods of the published study, by its names and in its order."""

_NAMED = {eraser.name: eraser for eraser in ERASERS}


@dataclass(frozen=True)
class CanvasMethod:
    """A method of the benchmark.

    Args:
        name: Its name in the published study.
        eraser: How it changes weights; without callbacks it leaves them unchanged.
        guard: A guard for the sampling, which takes the module and the concept and leaves the weights unchanged.
    """

    name: str
    eraser: Eraser
    guard: Description | None = None


METHODS = {
    method.name: method
    for method in (
        CanvasMethod("ESD", _NAMED["ESD-x"]),
        CanvasMethod("FMN", _NAMED["ForgetMeNot"]),
        CanvasMethod("UCE", _NAMED["UCE"]),
        CanvasMethod("CA", _NAMED["ConceptAblation"]),
        CanvasMethod("SalUn", _NAMED["SalUn"]),
        CanvasMethod("SEOT", _NAMED["before"], describe("SuppressEOT")),
        CanvasMethod("SPM", _NAMED["SPM"]),
        CanvasMethod("EDiff", _NAMED["EraseDiff"]),
        CanvasMethod("SHS", _NAMED["Scissorhands"]),
        CanvasMethod("AdvUnlearn", _NAMED["AdvUnlearn on the text encoder"]),
        CanvasMethod("MACE", _NAMED["MACE"]),
        CanvasMethod("RECE", _NAMED["RECE"]),
    )
}
"""The nine of the published study, AdvUnlearn, MACE and RECE, with the settings of
[`ERASERS`][lightning_unlearn.benchmarks.erasers.ERASERS]."""
