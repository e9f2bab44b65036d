"""Data modules that pair the rows to forget with the rows to keep."""

from lightning_unlearn.data.alternates import generate_alternates
from lightning_unlearn.data.captioned_images import CaptionedImageDataModule
from lightning_unlearn.data.forget_retain import ForgetRetainDataModule, PairLoader, PairSampler
from lightning_unlearn.data.language import LanguageDataModule
from lightning_unlearn.data.muse import MUSEDataModule
from lightning_unlearn.data.prompts import PromptDataModule, PromptRows
from lightning_unlearn.data.retain_prompts import retain_prompts
from lightning_unlearn.data.tofu import TOFUDataModule
from lightning_unlearn.data.wmdp import WMDPDataModule

__all__ = [
    "CaptionedImageDataModule",
    "ForgetRetainDataModule",
    "LanguageDataModule",
    "MUSEDataModule",
    "PairLoader",
    "PairSampler",
    "PromptDataModule",
    "PromptRows",
    "TOFUDataModule",
    "WMDPDataModule",
    "generate_alternates",
    "retain_prompts",
]
