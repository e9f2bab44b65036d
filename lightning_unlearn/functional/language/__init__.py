"""Losses on a language model's hidden states and generic predictions."""

from lightning_unlearn.functional.language.rmu import control_vector, mean_norm, rmu_forget, rmu_retain
from lightning_unlearn.functional.language.whos_harry_potter import whp_labels, whp_logits

__all__ = ["control_vector", "mean_norm", "rmu_forget", "rmu_retain", "whp_labels", "whp_logits"]
