"""Objectives written for language models. They work on any model whose score they are given."""

from lightning_unlearn.callbacks.language.grad_diff import GradDiff
from lightning_unlearn.callbacks.language.gradient_ascent import GradientAscent
from lightning_unlearn.callbacks.language.idk_nll import IdkNLL
from lightning_unlearn.callbacks.language.kl_minimization import KLMinimization
from lightning_unlearn.callbacks.language.npo import NPO
from lightning_unlearn.callbacks.language.objective import ForgetRetainObjective
from lightning_unlearn.callbacks.language.simnpo import SimNPO

__all__ = ["NPO", "ForgetRetainObjective", "GradDiff", "GradientAscent", "IdkNLL", "KLMinimization", "SimNPO"]
