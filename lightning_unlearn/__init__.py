"""Make any Lightning model forget, and prove it."""

from importlib.metadata import version

from lightning_unlearn.callbacks import (
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
    UnlearnCallback,
    UnlearnMonitor,
)
from lightning_unlearn.data import (
    ForgetRetainDataModule,
    LanguageDataModule,
    MUSEDataModule,
    TOFUDataModule,
    WMDPDataModule,
    generate_alternates,
)
from lightning_unlearn.modules import LitCausalLM, LoRA
from lightning_unlearn.scores import causal_lm_nll, classifier_nll, from_predictions, training_step_loss

__version__ = version("lightning-unlearn")

__all__ = [
    "CEU",
    "KTO",
    "NPO",
    "PDU",
    "RMU",
    "UNDIAL",
    "WGA",
    "AltPO",
    "ForgetRetainDataModule",
    "ForgetRetainObjective",
    "GradDiff",
    "GradientAscent",
    "IdkDPO",
    "IdkNLL",
    "KLMinimization",
    "LanguageDataModule",
    "LitCausalLM",
    "LoRA",
    "MUSEDataModule",
    "SatImp",
    "SimNPO",
    "TOFUDataModule",
    "UnlearnCallback",
    "UnlearnMonitor",
    "WMDPDataModule",
    "causal_lm_nll",
    "classifier_nll",
    "from_predictions",
    "generate_alternates",
    "training_step_loss",
]
