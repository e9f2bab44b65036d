"""Scores of label probabilities, targets from several annotators, and parsed ratings."""

from lightning_unlearn.functional.dialogue.expected_score import (
    argmax_score,
    expected_score,
    label_log_probs,
    label_weights,
    ratio_score,
)
from lightning_unlearn.functional.dialogue.rating_text import RATING_PATTERN, parse_label, parse_rating

__all__ = [
    "RATING_PATTERN",
    "argmax_score",
    "expected_score",
    "label_log_probs",
    "label_weights",
    "parse_label",
    "parse_rating",
    "ratio_score",
]
