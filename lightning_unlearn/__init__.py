"""Make any Lightning model forget, and prove it."""

from importlib.metadata import version

from lightning_unlearn.callbacks import (
    NPO,
    ForgetRetainObjective,
    GradDiff,
    GradientAscent,
    IdkNLL,
    KLMinimization,
    SimNPO,
    UnlearnCallback,
    UnlearnMonitor,
)
from lightning_unlearn.data import ForgetRetainDataModule, LanguageDataModule
from lightning_unlearn.modules import LitCausalLM, LoRA
from lightning_unlearn.scores import causal_lm_nll, classifier_nll, from_predictions, training_step_loss

__version__ = version("lightning-unlearn")

__all__ = [
    "NPO",
    "ForgetRetainDataModule",
    "ForgetRetainObjective",
    "GradDiff",
    "GradientAscent",
    "IdkNLL",
    "KLMinimization",
    "LanguageDataModule",
    "LitCausalLM",
    "LoRA",
    "SimNPO",
    "UnlearnCallback",
    "UnlearnMonitor",
    "causal_lm_nll",
    "classifier_nll",
    "from_predictions",
    "training_step_loss",
]
