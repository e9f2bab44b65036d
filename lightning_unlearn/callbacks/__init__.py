"""Callbacks that make a Lightning run unlearn, and that watch it."""

from lightning_unlearn.callbacks.base import UnlearnCallback
from lightning_unlearn.callbacks.language import (
    CEU,
    KTO,
    NPO,
    PDU,
    RMU,
    UNDIAL,
    WGA,
    AltPO,
    ForgetRetainObjective,
    GradDiff,
    GradientAscent,
    IdkDPO,
    IdkNLL,
    KLMinimization,
    SatImp,
    SimNPO,
)
from lightning_unlearn.callbacks.monitor import UnlearnMonitor

__all__ = [
    "CEU",
    "KTO",
    "NPO",
    "PDU",
    "RMU",
    "UNDIAL",
    "WGA",
    "AltPO",
    "ForgetRetainObjective",
    "GradDiff",
    "GradientAscent",
    "IdkDPO",
    "IdkNLL",
    "KLMinimization",
    "SatImp",
    "SimNPO",
    "UnlearnCallback",
    "UnlearnMonitor",
]
