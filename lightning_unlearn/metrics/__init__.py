"""How a classifier forgot, compared with one retrained without the rows: torchmetrics classes and their functions."""

from lightning_unlearn.metrics.accuracy import RA, TA, UA, accuracy, unlearning_accuracy
from lightning_unlearn.metrics.divergence import ZRF, JSDivergence, js_divergence, zrf
from lightning_unlearn.metrics.features import (
    confidence,
    correctness,
    entropy,
    log_odds,
    modified_entropy,
    probabilities,
)
from lightning_unlearn.metrics.gap import AverageGap, average_gap
from lightning_unlearn.metrics.images import (
    FID,
    KID,
    CLIPScore,
    PenultimateFeatures,
    clip_similarity,
    feature_distance,
    frechet_distance,
    load_clip,
)
from lightning_unlearn.metrics.mia import MIAEfficacy, mia_efficacy, training_privacy
from lightning_unlearn.metrics.outputs import Outputs, collect_outputs
from lightning_unlearn.metrics.relearn import AnamnesisIndex, Relearned, anamnesis_index, relearn_time
from lightning_unlearn.metrics.runtime import RTE, Cost, wall_clock
from lightning_unlearn.metrics.seeds import SeedSummary, over_seeds
from lightning_unlearn.metrics.tow import ToW, tow
from lightning_unlearn.metrics.ulira import ULiRA, ULiRAResult, u_lira

__all__ = [
    "FID",
    "KID",
    "RA",
    "RTE",
    "TA",
    "UA",
    "ZRF",
    "AnamnesisIndex",
    "AverageGap",
    "CLIPScore",
    "Cost",
    "JSDivergence",
    "MIAEfficacy",
    "Outputs",
    "PenultimateFeatures",
    "Relearned",
    "SeedSummary",
    "ToW",
    "ULiRA",
    "ULiRAResult",
    "accuracy",
    "anamnesis_index",
    "average_gap",
    "clip_similarity",
    "collect_outputs",
    "confidence",
    "correctness",
    "entropy",
    "feature_distance",
    "frechet_distance",
    "js_divergence",
    "load_clip",
    "log_odds",
    "mia_efficacy",
    "modified_entropy",
    "over_seeds",
    "probabilities",
    "relearn_time",
    "tow",
    "training_privacy",
    "u_lira",
    "unlearning_accuracy",
    "wall_clock",
    "zrf",
]
