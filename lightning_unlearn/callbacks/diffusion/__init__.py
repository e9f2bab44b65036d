"""Concept erasure in text-to-image models, one method a file."""

from lightning_unlearn.callbacks.diffusion.adapters import AdapterObjective
from lightning_unlearn.callbacks.diffusion.adv_unlearn import AdvUnlearn
from lightning_unlearn.callbacks.diffusion.ca import ConceptAblation
from lightning_unlearn.callbacks.diffusion.ediff import EraseDiff
from lightning_unlearn.callbacks.diffusion.esd import ESD
from lightning_unlearn.callbacks.diffusion.fmn import ForgetMeNot
from lightning_unlearn.callbacks.diffusion.mace import MACE
from lightning_unlearn.callbacks.diffusion.objective import DiffusionObjective
from lightning_unlearn.callbacks.diffusion.rece import RECE
from lightning_unlearn.callbacks.diffusion.salun import DiffusionSalUn
from lightning_unlearn.callbacks.diffusion.scissorhands import Scissorhands
from lightning_unlearn.callbacks.diffusion.spm import SPM
from lightning_unlearn.callbacks.diffusion.uce import UCE

__all__ = [
    "ESD",
    "MACE",
    "RECE",
    "SPM",
    "UCE",
    "AdapterObjective",
    "AdvUnlearn",
    "ConceptAblation",
    "DiffusionObjective",
    "DiffusionSalUn",
    "EraseDiff",
    "ForgetMeNot",
    "Scissorhands",
]
