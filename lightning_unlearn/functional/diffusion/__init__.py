"""Formulas of concept erasure in diffusion models."""

from lightning_unlearn.functional.diffusion.attention_spread import attention_map, attention_spread, half_mass_area
from lightning_unlearn.functional.diffusion.canvas_accuracy import (
    ErasureAccuracies,
    PairAccuracies,
    canvas_accuracies,
    concept_accuracies,
    erasure_accuracies,
    pair_accuracies,
    pair_quadrants,
    rebound,
    redirect_entropy,
    retained_accuracy,
)
from lightning_unlearn.functional.diffusion.ddim import (
    add_noise,
    attack_timesteps,
    ddim_step,
    ddim_timesteps,
    ldm_timesteps,
    prediction_target,
)
from lightning_unlearn.functional.diffusion.distances import feature_distance, frechet_distance
from lightning_unlearn.functional.diffusion.erase_diff import erasediff_multiplier
from lightning_unlearn.functional.diffusion.esd import esd_target
from lightning_unlearn.functional.diffusion.forget_me_not import attention_norm, token_positions
from lightning_unlearn.functional.diffusion.guidance import classifier_free_guidance
from lightning_unlearn.functional.diffusion.mace import focal_density, fusion_maps, masked_attention_norm, replaced
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.diffusion.rece import closed_form_attack
from lightning_unlearn.functional.diffusion.scissorhands import fresh_values, projection_weight
from lightning_unlearn.functional.diffusion.seot import concept_and_end_places, suppress_eot
from lightning_unlearn.functional.diffusion.simplex import project_simplex, sample_simplex
from lightning_unlearn.functional.diffusion.sld import SLD_PRESETS, SafetyConfig, safety_guidance
from lightning_unlearn.functional.diffusion.soft_prompt_attack import soft_prompt_attack
from lightning_unlearn.functional.diffusion.soft_tokens import insert_tokens
from lightning_unlearn.functional.diffusion.spm import latent_anchors, permeability
from lightning_unlearn.functional.diffusion.uce import uce, uce_map

__all__ = [
    "SLD_PRESETS",
    "ErasureAccuracies",
    "PairAccuracies",
    "SafetyConfig",
    "add_noise",
    "attack_timesteps",
    "attention_map",
    "attention_norm",
    "attention_spread",
    "canvas_accuracies",
    "classifier_free_guidance",
    "closed_form_attack",
    "concept_accuracies",
    "concept_and_end_places",
    "ddim_step",
    "ddim_timesteps",
    "erasediff_multiplier",
    "erasure_accuracies",
    "esd_target",
    "feature_distance",
    "focal_density",
    "frechet_distance",
    "fresh_values",
    "fusion_maps",
    "half_mass_area",
    "insert_tokens",
    "latent_anchors",
    "ldm_timesteps",
    "masked_attention_norm",
    "pair_accuracies",
    "pair_quadrants",
    "permeability",
    "prediction_target",
    "project_simplex",
    "projection_weight",
    "rebound",
    "redirect_entropy",
    "replaced",
    "retained_accuracy",
    "row_noise",
    "safety_guidance",
    "sample_simplex",
    "soft_prompt_attack",
    "suppress_eot",
    "token_positions",
    "uce",
    "uce_map",
]
