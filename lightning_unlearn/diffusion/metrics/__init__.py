"""Metrics of generated images."""

from lightning_unlearn.diffusion.metrics.images import (
    FID,
    KID,
    CLIPScore,
    PenultimateFeatures,
    clip_similarity,
    feature_distance,
    frechet_distance,
    load_clip,
)

__all__ = [
    "FID",
    "KID",
    "CLIPScore",
    "PenultimateFeatures",
    "clip_similarity",
    "feature_distance",
    "frechet_distance",
    "load_clip",
]
