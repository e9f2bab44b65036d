"""Losses on a language model's hidden states, and formulas of its evaluation."""

from lightning_unlearn.functional.language.activation_noise import relative_noise
from lightning_unlearn.functional.language.depth_score import depth_score
from lightning_unlearn.functional.language.extraction import answer_probability, exact_memorization, extraction_strength
from lightning_unlearn.functional.language.leak import (
    clopper_pearson_upper,
    deviation_upper_bound,
    dkw_epsilon,
    expected_best_of_k,
    leak_at_k,
    mean_upper_bound,
    tail_upper_bound,
)
from lightning_unlearn.functional.language.membership import (
    gradient_norm,
    loss_score,
    lower_case_score,
    min_k,
    min_k_plus_plus,
    reference_score,
    zlib_score,
)
from lightning_unlearn.functional.language.privacy import priv_leak, s_mia
from lightning_unlearn.functional.language.rmu import control_vector, mean_norm, rmu_forget, rmu_retain
from lightning_unlearn.functional.language.token_statistics import TokenStatistics, token_statistics
from lightning_unlearn.functional.language.truth_ratio import truth_ratio, truth_ratio_score
from lightning_unlearn.functional.language.whos_harry_potter import whp_labels, whp_logits

__all__ = [
    "TokenStatistics",
    "answer_probability",
    "clopper_pearson_upper",
    "control_vector",
    "depth_score",
    "deviation_upper_bound",
    "dkw_epsilon",
    "exact_memorization",
    "expected_best_of_k",
    "extraction_strength",
    "gradient_norm",
    "leak_at_k",
    "loss_score",
    "lower_case_score",
    "mean_norm",
    "mean_upper_bound",
    "min_k",
    "min_k_plus_plus",
    "priv_leak",
    "reference_score",
    "relative_noise",
    "rmu_forget",
    "rmu_retain",
    "s_mia",
    "tail_upper_bound",
    "token_statistics",
    "truth_ratio",
    "truth_ratio_score",
    "whp_labels",
    "whp_logits",
    "zlib_score",
]
