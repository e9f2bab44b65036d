"""Losses on a language model's hidden states and generic predictions, and formulas of its evaluation."""

from lightning_unlearn.functional.language.privacy import priv_leak, s_mia
from lightning_unlearn.functional.language.rmu import control_vector, mean_norm, rmu_forget, rmu_retain
from lightning_unlearn.functional.language.truth_ratio import truth_ratio, truth_ratio_score
from lightning_unlearn.functional.language.whos_harry_potter import whp_labels, whp_logits

__all__ = [
    "control_vector",
    "mean_norm",
    "priv_leak",
    "rmu_forget",
    "rmu_retain",
    "s_mia",
    "truth_ratio",
    "truth_ratio_score",
    "whp_labels",
    "whp_logits",
]
