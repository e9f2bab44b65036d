"""Objectives on sequences. They hold for classifiers too: a label is a sequence of one token."""

from lightning_unlearn.functional.language.gradient_ascent import gradient_ascent
from lightning_unlearn.functional.language.kl import kl_divergence
from lightning_unlearn.functional.language.likelihood import (
    length_normalised,
    sequence_nll,
    token_mean,
    token_nll,
)
from lightning_unlearn.functional.language.npo import npo
from lightning_unlearn.functional.language.simnpo import simnpo

__all__ = [
    "gradient_ascent",
    "kl_divergence",
    "length_normalised",
    "npo",
    "sequence_nll",
    "simnpo",
    "token_mean",
    "token_nll",
]
