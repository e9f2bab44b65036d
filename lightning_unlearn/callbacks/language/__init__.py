"""Objectives written for language models. They work on any model whose score they are given."""

from lightning_unlearn.callbacks.language.alt_po import AltPO
from lightning_unlearn.callbacks.language.ceu import CEU
from lightning_unlearn.callbacks.language.embedding_difference import EmbeddingDifference
from lightning_unlearn.callbacks.language.forget_kl import ForgetKL
from lightning_unlearn.callbacks.language.grad_diff import GradDiff
from lightning_unlearn.callbacks.language.gradient_ascent import GradientAscent
from lightning_unlearn.callbacks.language.idk_dpo import IdkDPO
from lightning_unlearn.callbacks.language.idk_nll import IdkNLL
from lightning_unlearn.callbacks.language.kl_minimization import KLMinimization
from lightning_unlearn.callbacks.language.kto import KTO
from lightning_unlearn.callbacks.language.npo import NPO
from lightning_unlearn.callbacks.language.objective import ForgetRetainObjective
from lightning_unlearn.callbacks.language.pdu import PDU
from lightning_unlearn.callbacks.language.ramp import Ramp
from lightning_unlearn.callbacks.language.rmu import RMU
from lightning_unlearn.callbacks.language.satimp import SatImp
from lightning_unlearn.callbacks.language.simnpo import SimNPO
from lightning_unlearn.callbacks.language.task_vector import TaskVector
from lightning_unlearn.callbacks.language.undial import UNDIAL
from lightning_unlearn.callbacks.language.wga import WGA
from lightning_unlearn.callbacks.language.whos_harry_potter import WhosHarryPotter

__all__ = [
    "CEU",
    "KTO",
    "NPO",
    "PDU",
    "RMU",
    "UNDIAL",
    "WGA",
    "AltPO",
    "EmbeddingDifference",
    "ForgetKL",
    "ForgetRetainObjective",
    "GradDiff",
    "GradientAscent",
    "IdkDPO",
    "IdkNLL",
    "KLMinimization",
    "Ramp",
    "SatImp",
    "SimNPO",
    "TaskVector",
    "WhosHarryPotter",
]
