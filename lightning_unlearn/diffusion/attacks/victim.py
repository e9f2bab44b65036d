"""The attacked model: its fingerprint, and its loss as a function of inserted tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.diffusion.engine.model import TextToImage, alphas_bar, prediction_type, unet_output
from lightning_unlearn.diffusion.engine.text import encode, encode_inserted
from lightning_unlearn.functional.diffusion.ddim import add_noise, prediction_target
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.diffusion.soft_tokens import Placement

__all__ = ["Criterion", "PromptLoss", "fit_images", "read_images", "target_latents"]

Criterion = Literal["l2", "l1"]

_NOISE = 1


@torch.no_grad()
def target_latents(module: Any, images: Tensor) -> Tensor:
    """Scaled means ``(B, C, h, w)`` of the autoencoder's posterior of images ``(B, 3, H, W)`` in [0, 1], in fp32."""
    vae = module.vae
    weight = next(vae.parameters())
    with torch.autocast(weight.device.type, enabled=False):
        mean = vae.encode((2 * images - 1).to(weight)).latent_dist.mean
    return mean.float() * vae.config.scaling_factor


@dataclass
class PromptLoss:
    r"""Loss of an attack: distance of the model's output for the prompt with inserted tokens from a target.

    Without a base model, that of UnlearnDiffAtk, the denoising loss of the target image $z$,
    $\| e_\theta(z_t, t, c') - e^* \|^2 / (C h w)$ with $e^* = \epsilon$, or the velocity where the model predicts that;
    with one, that of P4D, in which $e^*$ is the output of the base model for the prompt without the tokens.

    Args:
        model: The model under attack.
        ids: Token ids of the prompts, shape ``(B, L)``.
        lengths: Number of their words in tokens, shape ``(B,)``.
        latents: Of the target images, shape ``(B, C, h, w)``.
        keys: A number of each prompt, which with the seed determines its noise.
        placement: Where the tokens go.
        criterion: ``"l2"``, mean squared error, or ``"l1"``, mean absolute error.
        seed: Seed of the noise.
        base: The model before erasure, for P4D.
    """

    model: TextToImage
    ids: Tensor
    lengths: Tensor
    latents: Tensor
    keys: list[int]
    placement: Placement
    criterion: Criterion = "l2"
    seed: int = 0
    base: TextToImage | None = None

    def __post_init__(self) -> None:
        with torch.no_grad():
            self._states = None if self.base is None else encode(self.base, self.ids)

    def __call__(self, tokens: Tensor, rows: list[int], timesteps: Tensor, step: int) -> Tensor:
        """The loss ``(N,)`` of token embeddings ``(N, k, D)`` in some of the prompts.

        Args:
            tokens: The embeddings; gradients flow to them.
            rows: The prompt of each, numbers in ``[0, B)``.
            timesteps: Of each of the ``B`` prompts.
            step: Number of the step: each has noise of its own.
        """
        latents, timesteps = self.latents[rows], timesteps[rows]
        states = encode_inserted(self.model, self.ids[rows], self.lengths[rows], tokens, self.placement)
        noise = row_noise(latents.shape[1:], [self.keys[r] for r in rows], self.seed, _NOISE, step).to(latents)
        levels = alphas_bar(self.model)[timesteps]
        noisy = add_noise(latents, noise, levels)
        dtype = next(self.model.unet.parameters()).dtype
        output = unet_output(self.model, noisy.to(dtype), timesteps, states)
        if self.base is None or self._states is None:
            target = prediction_target(latents, noise, levels, prediction_type(self.model))
        else:
            with torch.no_grad():
                target = unet_output(self.base, noisy.to(dtype), timesteps, self._states[rows])
        error = output - target
        return (error.square() if self.criterion == "l2" else error.abs()).flatten(1).mean(1)


def read_images(folder: str | Path) -> list[Tensor]:
    """The PNG and JPEG files of a folder, in the order of the numbers in their names, each ``(3, H, W)`` in [0, 1].

    Raises:
        ValueError: If there is none.
    """
    import numpy as np
    from PIL import Image, ImageOps

    paths = [path for path in Path(folder).glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    paths.sort(key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])
    if not paths:
        raise ValueError(f"{folder} has no .png or .jpg file, but target images are wanted from there.")
    images = []
    for path in paths:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file).convert("RGB")
        images.append(torch.from_numpy(np.array(upright)).permute(2, 0, 1) / 255)
    return images


def fit_images(images: Tensor | Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Images of any sizes at the size of a model: resized until they cover it, and cut in the middle.

    Args:
        images: ``N`` images, each ``(3, H, W)``, in [0, 1]; those of the right size stay as they are.
        size: Height and width.

    Returns:
        Shape ``(N, 3, *size)``.

    Raises:
        ValueError: If an image has another shape.
    """
    odd = [tuple(image.shape) for image in images if image.dim() != 3 or len(image) != 3]
    if odd:
        raise ValueError(f"A target image has the shape (3, H, W), with colours in [0, 1], but one has {odd[0]}.")
    others = {tuple(image.shape[1:]) for image in images} - {size}
    if others:
        rank_zero_warn(f"Target images of {sorted(others)[0]} pixels are resized to the model's {size}.")
    return torch.stack([image if image.shape[1:] == size else _fit(image, size) for image in images])


def _fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    scale = max(wanted / given for wanted, given in zip(size, image.shape[1:], strict=True))
    height, width = (max(w, round(g * scale)) for w, g in zip(size, image.shape[1:], strict=True))
    large = F.interpolate(image[None].float(), (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return large[:, top : top + size[0], left : left + size[1]]
