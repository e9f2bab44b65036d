"""Metrics of reconstructed images."""

from lightning_unlearn.reconstruction.metrics.quality import (
    HFEN,
    NMSE,
    ComplexPSNR,
    ImageQuality,
    MagnitudePSNR,
    MagnitudeSSIM,
)

__all__ = ["HFEN", "NMSE", "ComplexPSNR", "ImageQuality", "MagnitudePSNR", "MagnitudeSSIM"]
