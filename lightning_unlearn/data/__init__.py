"""Data modules that pair the rows to forget with the rows to keep."""

from lightning_unlearn.data.forget_retain import ForgetRetainDataModule, PairLoader, PairSampler
from lightning_unlearn.data.language import LanguageDataModule

__all__ = ["ForgetRetainDataModule", "LanguageDataModule", "PairLoader", "PairSampler"]
