"""Objectives for classifiers, one a file."""

from lightning_unlearn.callbacks.classification.amnesiac import Amnesiac, AmnesiacLedger
from lightning_unlearn.callbacks.classification.bad_teacher import BadTeacher
from lightning_unlearn.callbacks.classification.boundary_expand import BoundaryExpand
from lightning_unlearn.callbacks.classification.boundary_shrink import BoundaryShrink
from lightning_unlearn.callbacks.classification.duck import DUCK
from lightning_unlearn.callbacks.classification.fine_tune import FineTune
from lightning_unlearn.callbacks.classification.fisher import FisherForgetting
from lightning_unlearn.callbacks.classification.l1_sparse import L1Sparse
from lightning_unlearn.callbacks.classification.last_layers import CFk, EUk
from lightning_unlearn.callbacks.classification.neg_grad_plus import NegGradPlus
from lightning_unlearn.callbacks.classification.objective import ClassifierObjective
from lightning_unlearn.callbacks.classification.random_labels import RandomLabels
from lightning_unlearn.callbacks.classification.retrain import Retrain
from lightning_unlearn.callbacks.classification.rewind import Rewind
from lightning_unlearn.callbacks.classification.scrub import SCRUB
from lightning_unlearn.callbacks.classification.ssd import SSD
from lightning_unlearn.callbacks.classification.ugradsl import UGradSL, UGradSLPlus
from lightning_unlearn.callbacks.classification.unsir import UNSIR

__all__ = [
    "DUCK",
    "SCRUB",
    "SSD",
    "UNSIR",
    "Amnesiac",
    "AmnesiacLedger",
    "BadTeacher",
    "BoundaryExpand",
    "BoundaryShrink",
    "CFk",
    "ClassifierObjective",
    "EUk",
    "FineTune",
    "FisherForgetting",
    "L1Sparse",
    "NegGradPlus",
    "RandomLabels",
    "Retrain",
    "Rewind",
    "UGradSL",
    "UGradSLPlus",
]
