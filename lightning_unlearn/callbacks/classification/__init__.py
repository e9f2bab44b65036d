"""Objectives for classifiers, one a file."""

from lightning_unlearn.callbacks.classification.bad_teacher import BadTeacher
from lightning_unlearn.callbacks.classification.fine_tune import FineTune
from lightning_unlearn.callbacks.classification.l1_sparse import L1Sparse
from lightning_unlearn.callbacks.classification.neg_grad_plus import NegGradPlus
from lightning_unlearn.callbacks.classification.objective import ClassifierObjective
from lightning_unlearn.callbacks.classification.random_labels import RandomLabels
from lightning_unlearn.callbacks.classification.scrub import SCRUB
from lightning_unlearn.callbacks.classification.ssd import SSD
from lightning_unlearn.callbacks.classification.ugradsl import UGradSL, UGradSLPlus

__all__ = [
    "SCRUB",
    "SSD",
    "BadTeacher",
    "ClassifierObjective",
    "FineTune",
    "L1Sparse",
    "NegGradPlus",
    "RandomLabels",
    "UGradSL",
    "UGradSLPlus",
]
