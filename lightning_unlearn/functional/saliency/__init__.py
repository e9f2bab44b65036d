"""Saliency scores of weights, and exact thresholds over them."""

from lightning_unlearn.functional.saliency.bits import apply_mask_, pack_mask, unpack_mask
from lightning_unlearn.functional.saliency.gradient import gradient_score
from lightning_unlearn.functional.saliency.magnitude import magnitude_score
from lightning_unlearn.functional.saliency.overlap import mask_iou
from lightning_unlearn.functional.saliency.random import random_score
from lightning_unlearn.functional.saliency.snip import snip_score
from lightning_unlearn.functional.saliency.threshold import Cutoff, Place, top_mask, top_threshold
from lightning_unlearn.functional.saliency.wagle import wagle_score
from lightning_unlearn.functional.saliency.wanda import top_of_each_row, wanda_score

__all__ = [
    "Cutoff",
    "Place",
    "apply_mask_",
    "gradient_score",
    "magnitude_score",
    "mask_iou",
    "pack_mask",
    "random_score",
    "snip_score",
    "top_mask",
    "top_of_each_row",
    "top_threshold",
    "unpack_mask",
    "wagle_score",
    "wanda_score",
]
