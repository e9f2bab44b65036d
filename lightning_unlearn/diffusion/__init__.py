"""The engine of concept erasure: how a latent diffusion model is read, sampled and taken apart."""

from lightning_unlearn.diffusion.adapters import Membrane, Membranes, adapted_layers
from lightning_unlearn.diffusion.attention import attention_probabilities
from lightning_unlearn.diffusion.denoising import denoising_nll
from lightning_unlearn.diffusion.export import export_text_encoder, load_text_encoder
from lightning_unlearn.diffusion.model import (
    TextToImage,
    alphas_bar,
    as_text_to_image,
    latent_shape,
    prediction_type,
    unet_output,
)
from lightning_unlearn.diffusion.parameters import TextEncoderWeights, kv_layers, select_params
from lightning_unlearn.diffusion.passes import PassCounter
from lightning_unlearn.diffusion.sampling import partial_sample, trajectory
from lightning_unlearn.diffusion.text import concept_tokens, empty_states, encode, inject, tokenize

__all__ = [
    "Membrane",
    "Membranes",
    "PassCounter",
    "TextEncoderWeights",
    "TextToImage",
    "adapted_layers",
    "alphas_bar",
    "as_text_to_image",
    "attention_probabilities",
    "concept_tokens",
    "denoising_nll",
    "empty_states",
    "encode",
    "export_text_encoder",
    "inject",
    "kv_layers",
    "latent_shape",
    "load_text_encoder",
    "partial_sample",
    "prediction_type",
    "select_params",
    "tokenize",
    "trajectory",
    "unet_output",
]
