"""Formulas of the papers as pure tensor functions that need only torch, one method per file."""

from lightning_unlearn.functional import (
    classification,
    curvature,
    dialogue,
    diffusion,
    language,
    objectives,
    reconstruction,
    saliency,
    smoothing,
)
from lightning_unlearn.functional.classification import *
from lightning_unlearn.functional.curvature import *
from lightning_unlearn.functional.dialogue import *
from lightning_unlearn.functional.diffusion import *
from lightning_unlearn.functional.kl import kl_divergence
from lightning_unlearn.functional.language import *
from lightning_unlearn.functional.likelihood import length_normalised, sequence_nll, token_mean, token_nll
from lightning_unlearn.functional.objectives import *
from lightning_unlearn.functional.quantization import (
    QUANTIZATION_SCHEMES,
    QuantizationScheme,
    Quantized,
    code_overlap,
    dequantize,
    quantize,
    round_weight,
)
from lightning_unlearn.functional.random import keyed_generator, keyed_seed, mixed_bits
from lightning_unlearn.functional.reconstruction import *
from lightning_unlearn.functional.robustness import (
    curve_area,
    meta_robustness,
    precision_usable,
    quantization_robustness,
    recovery,
    recovery_area,
    recovery_ratio,
    relearning_robustness,
    self_recovery,
    steps_to_recovery,
)
from lightning_unlearn.functional.roc import auc, delong, tpr_at_fpr
from lightning_unlearn.functional.saliency import *
from lightning_unlearn.functional.smoothing import *

__all__ = [
    "QUANTIZATION_SCHEMES",
    "QuantizationScheme",
    "Quantized",
    "auc",
    "code_overlap",
    "curve_area",
    "delong",
    "dequantize",
    "keyed_generator",
    "keyed_seed",
    "kl_divergence",
    "length_normalised",
    "meta_robustness",
    "mixed_bits",
    "precision_usable",
    "quantization_robustness",
    "quantize",
    "recovery",
    "recovery_area",
    "recovery_ratio",
    "relearning_robustness",
    "round_weight",
    "self_recovery",
    "sequence_nll",
    "steps_to_recovery",
    "token_mean",
    "token_nll",
    "tpr_at_fpr",
]
__all__ += objectives.__all__
__all__ += language.__all__
__all__ += classification.__all__
__all__ += diffusion.__all__
__all__ += saliency.__all__
__all__ += curvature.__all__
__all__ += smoothing.__all__
__all__ += reconstruction.__all__
__all__ += dialogue.__all__
