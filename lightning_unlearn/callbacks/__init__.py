"""Callbacks that make a Lightning run unlearn, and that watch it."""

from lightning_unlearn.callbacks.base import UnlearnCallback
from lightning_unlearn.callbacks.language import (
    NPO,
    ForgetRetainObjective,
    GradDiff,
    GradientAscent,
    IdkNLL,
    KLMinimization,
    SimNPO,
)
from lightning_unlearn.callbacks.monitor import UnlearnMonitor

__all__ = [
    "NPO",
    "ForgetRetainObjective",
    "GradDiff",
    "GradientAscent",
    "IdkNLL",
    "KLMinimization",
    "SimNPO",
    "UnlearnCallback",
    "UnlearnMonitor",
]
