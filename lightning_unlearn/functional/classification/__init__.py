"""Formulas of unlearning methods for classifiers."""

from lightning_unlearn.functional.classification.adaptive_alpha import adaptive_alpha, output_distance
from lightning_unlearn.functional.classification.distillation import distillation
from lightning_unlearn.functional.classification.duck import centroid_distance, nearest_wrong_centroid
from lightning_unlearn.functional.classification.fgsm import fgsm
from lightning_unlearn.functional.classification.fisher_forgetting import fisher_forgetting
from lightning_unlearn.functional.classification.l1_sparse import l1_weight
from lightning_unlearn.functional.classification.label_privacy import label_privacy
from lightning_unlearn.functional.classification.label_smoothing import generalized_label_smoothing, smoothed_targets
from lightning_unlearn.functional.classification.matched_error import matched_error
from lightning_unlearn.functional.classification.random_labels import random_labels
from lightning_unlearn.functional.classification.synaptic_dampening import synaptic_dampening
from lightning_unlearn.functional.classification.ugradsl import ugradsl
from lightning_unlearn.functional.classification.unsir import unsir_noise
from lightning_unlearn.functional.classification.worst_case import capped_simplex_projection, worst_case_indices

__all__ = [
    "adaptive_alpha",
    "capped_simplex_projection",
    "centroid_distance",
    "distillation",
    "fgsm",
    "fisher_forgetting",
    "generalized_label_smoothing",
    "l1_weight",
    "label_privacy",
    "matched_error",
    "nearest_wrong_centroid",
    "output_distance",
    "random_labels",
    "smoothed_targets",
    "synaptic_dampening",
    "ugradsl",
    "unsir_noise",
    "worst_case_indices",
]
