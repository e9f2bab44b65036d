"""The mathematics: pure tensor functions that need nothing but torch, one method a file."""

from lightning_unlearn.functional.language import (
    gradient_ascent,
    kl_divergence,
    length_normalised,
    npo,
    sequence_nll,
    simnpo,
    token_mean,
    token_nll,
)

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
