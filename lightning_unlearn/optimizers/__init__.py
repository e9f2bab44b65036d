"""Optimizers for unlearning."""

from lightning_unlearn.optimizers.sophia import Sophia

__all__ = ["Sophia"]
