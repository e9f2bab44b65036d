"""Expected scores, soft labels, parsed ratings, and agreement with human ratings."""

from lightning_unlearn.functional.dialogue.agreement import class_counts, cohen_kappa, macro_f1, macro_recall
from lightning_unlearn.functional.dialogue.correlation import average_ranks, kendall, pearson, spearman
from lightning_unlearn.functional.dialogue.expected_score import (
    argmax_score,
    expected_score,
    label_log_probs,
    label_weights,
    ratio_score,
)
from lightning_unlearn.functional.dialogue.rating_text import RATING_PATTERN, parse_label, parse_rating
from lightning_unlearn.functional.dialogue.soft_labels import expected_score_loss, soft_label_nll, soft_labels

__all__ = [
    "RATING_PATTERN",
    "argmax_score",
    "average_ranks",
    "class_counts",
    "cohen_kappa",
    "expected_score",
    "expected_score_loss",
    "kendall",
    "label_log_probs",
    "label_weights",
    "macro_f1",
    "macro_recall",
    "parse_label",
    "parse_rating",
    "pearson",
    "ratio_score",
    "soft_label_nll",
    "soft_labels",
    "spearman",
]
