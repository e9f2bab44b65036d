"""Objectives on sequences. They hold for classifiers too: a label is a sequence of one token."""

from lightning_unlearn.functional.language.ceu import ceu
from lightning_unlearn.functional.language.dpo import dpo
from lightning_unlearn.functional.language.gradient_ascent import gradient_ascent
from lightning_unlearn.functional.language.kl import kl_divergence
from lightning_unlearn.functional.language.kto import kto
from lightning_unlearn.functional.language.likelihood import (
    length_normalised,
    sequence_nll,
    token_mean,
    token_nll,
)
from lightning_unlearn.functional.language.npo import npo
from lightning_unlearn.functional.language.pdu import pdu
from lightning_unlearn.functional.language.rmu import control_vector, mean_norm, rmu_forget, rmu_retain
from lightning_unlearn.functional.language.satimp import satimp
from lightning_unlearn.functional.language.simnpo import simnpo
from lightning_unlearn.functional.language.task_vector import negate_task_vector
from lightning_unlearn.functional.language.undial import undial
from lightning_unlearn.functional.language.wga import wga
from lightning_unlearn.functional.language.whp import whp_labels, whp_logits

__all__ = [
    "ceu",
    "control_vector",
    "dpo",
    "gradient_ascent",
    "kl_divergence",
    "kto",
    "length_normalised",
    "mean_norm",
    "negate_task_vector",
    "npo",
    "pdu",
    "rmu_forget",
    "rmu_retain",
    "satimp",
    "sequence_nll",
    "simnpo",
    "token_mean",
    "token_nll",
    "undial",
    "wga",
    "whp_labels",
    "whp_logits",
]
