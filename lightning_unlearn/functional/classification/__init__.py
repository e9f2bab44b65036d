"""Objectives on the class that a classifier gives to a row."""

from lightning_unlearn.functional.classification.adaptive_alpha import adaptive_alpha, output_distance
from lightning_unlearn.functional.classification.distillation import distillation
from lightning_unlearn.functional.classification.l1_sparse import l1_weight
from lightning_unlearn.functional.classification.label_privacy import label_privacy
from lightning_unlearn.functional.classification.label_smoothing import generalized_label_smoothing, smoothed_targets
from lightning_unlearn.functional.classification.random_labels import random_labels
from lightning_unlearn.functional.classification.synaptic_dampening import synaptic_dampening
from lightning_unlearn.functional.classification.ugradsl import ugradsl

__all__ = [
    "adaptive_alpha",
    "distillation",
    "generalized_label_smoothing",
    "l1_weight",
    "label_privacy",
    "output_distance",
    "random_labels",
    "smoothed_targets",
    "synaptic_dampening",
    "ugradsl",
]
