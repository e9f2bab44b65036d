"""Masks: which weights may move."""

from lightning_unlearn.callbacks.masking.base import WeightMask
from lightning_unlearn.callbacks.masking.density import mask_density_figure, mask_density_table
from lightning_unlearn.callbacks.masking.gradient import GradientMask
from lightning_unlearn.callbacks.masking.layer import LayerMask
from lightning_unlearn.callbacks.masking.magnitude import MagnitudeMask
from lightning_unlearn.callbacks.masking.mask_file import load_mask
from lightning_unlearn.callbacks.masking.random import RandomMask
from lightning_unlearn.callbacks.masking.salun import SalUn
from lightning_unlearn.callbacks.masking.snip import SNIP
from lightning_unlearn.callbacks.masking.wagle import WAGLE
from lightning_unlearn.callbacks.masking.wanda import Wanda

__all__ = [
    "SNIP",
    "WAGLE",
    "GradientMask",
    "LayerMask",
    "MagnitudeMask",
    "RandomMask",
    "SalUn",
    "Wanda",
    "WeightMask",
    "load_mask",
    "mask_density_figure",
    "mask_density_table",
]
