"""Metrics of unlearned classifiers, relative to a model retrained without the forget rows."""

from lightning_unlearn.classification.metrics.accuracy import RA, TA, UA, accuracy, unlearning_accuracy
from lightning_unlearn.classification.metrics.divergence import ZRF, JSDivergence, js_divergence, zrf
from lightning_unlearn.classification.metrics.features import (
    confidence,
    correctness,
    entropy,
    log_odds,
    modified_entropy,
    probabilities,
)
from lightning_unlearn.classification.metrics.gap import AverageGap, average_gap
from lightning_unlearn.classification.metrics.mia import MIAEfficacy, mia_efficacy, training_privacy
from lightning_unlearn.classification.metrics.outputs import Outputs, collect_outputs
from lightning_unlearn.classification.metrics.runtime import RTE, Cost, wall_clock
from lightning_unlearn.classification.metrics.tow import ToW, tow
from lightning_unlearn.classification.metrics.ulira import ULiRA, ULiRAResult, u_lira

__all__ = [
    "RA",
    "RTE",
    "TA",
    "UA",
    "ZRF",
    "AverageGap",
    "Cost",
    "JSDivergence",
    "MIAEfficacy",
    "Outputs",
    "ToW",
    "ULiRA",
    "ULiRAResult",
    "accuracy",
    "average_gap",
    "collect_outputs",
    "confidence",
    "correctness",
    "entropy",
    "js_divergence",
    "log_odds",
    "mia_efficacy",
    "modified_entropy",
    "probabilities",
    "tow",
    "training_privacy",
    "u_lira",
    "unlearning_accuracy",
    "wall_clock",
    "zrf",
]
