"""Settings of the erasure methods that a request can name: those of their papers, and those of the miniature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_unlearn.benchmarks.erasers import ERASERS
from lightning_unlearn.benchmarks.runs import Description, describe, takes
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.diffusion.engine.parameters import Trainable

__all__ = ["AUTO", "METHODS", "Recipe", "recipe"]

AUTO = "esd"
"""The method of a request that names none."""


@dataclass(frozen=True)
class Recipe:
    """A method with its settings.

    Args:
        callback: The method, as a configuration describes it.
        trainable: The weights that train, see [`LitTextToImage`][lightning_unlearn.LitTextToImage].
        lr: Learning rate.
        steps: Steps of training; 0 of an edit in closed form.
        batch_size: Prompts to forget in a batch.
        retain_batch_size: Prompts to keep in a batch; 0 of a method that reads none.
        source: Where the settings are from.
    """

    callback: Description
    trainable: Trainable
    lr: float = 1e-5
    steps: int = 0
    batch_size: int = 1
    retain_batch_size: int = 0
    source: str = "its paper"

    @property
    def name(self) -> str:
        """Name of the class."""
        return str(self.callback["class_path"]).rpartition(".")[2]

    def seeded(self, seed: int) -> Description:
        """The method with a seed, where it draws anything."""
        arguments = {"seed": seed} if takes(self.callback, "seed") else {}
        return {**self.callback, "init_args": {**self.callback.get("init_args", {}), **arguments}}

    def passes(self, steps: int) -> int:
        """About how many passes of the UNet so many steps take: the sampler stops half way, on average."""
        if not self.steps:
            return 0
        arguments = self.callback.get("init_args", {})
        attack = arguments.get("attack", {}).get("init_args", {}).get("steps", 30) if self.name == "AdvUnlearn" else 0
        return steps * (math.ceil(arguments.get("steps", 50) / 2) + 3 + attack)


METHODS: dict[str, Recipe] = {
    "esd": Recipe(describe("ESD"), "xattn", 1e-5, 1000),
    "esd_u": Recipe(describe("ESD"), "noxattn", 1e-5, 1000),
    "uce": Recipe(describe("UCE", states="rest"), "kv", retain_batch_size=1),
    "rece": Recipe(describe("RECE", states="rest", attack_lamb=0.001), "kv", retain_batch_size=1),
    "adv_unlearn": Recipe(describe("AdvUnlearn"), "text_encoder", 1e-5, 1000, 1, 5),
    "concept_ablation": Recipe(describe("ConceptAblation", latents="sampled"), "kv", 1.6e-5, 100, 8),
    "spm": Recipe(describe("SPM", anchors=4, anchor_weight=1000.0, steps=30), "xattn", 1e-4, 3000),
}
"""The methods that need prompts alone, by their names on the command line."""

_ON_THE_MINIATURE = {
    "esd": "ESD-x",
    "esd_u": "ESD-u",
    "uce": "UCE",
    "rece": "RECE",
    "adv_unlearn": "AdvUnlearn on the text encoder",
    "concept_ablation": "ConceptAblation",
    "spm": "SPM",
}
_NEED_IMAGES = ("mace", "forget_me_not", "erase_diff", "scissorhands", "diffusion_salun")


def recipe(method: str, miniature: bool = False) -> Recipe:
    """The settings of a method.

    Args:
        method: ``"auto"`` or one of `METHODS`.
        miniature: Whether it is to erase from the miniature, which is smaller than the models of the papers by far.

    Raises:
        ValueError: If there is no such method, or it needs images.
    """
    if method in _NEED_IMAGES:
        raise ValueError(
            f"method={method!r} learns from images, and a request has prompts: give one of {', '.join(METHODS)}; or "
            f"run `lightning-unlearn fit` with callbacks/diffusion/{method}.yaml and your images."
        )
    name = AUTO if method == "auto" else one_of("method", method, METHODS)
    if not miniature:
        return METHODS[name]
    (eraser,) = (eraser for eraser in ERASERS if eraser.name == _ON_THE_MINIATURE[name])
    return Recipe(
        eraser.callbacks[0],
        eraser.trainable,
        eraser.lr,
        eraser.steps if METHODS[name].steps else 0,
        eraser.batch_size,
        eraser.batch_size if METHODS[name].retain_batch_size else 0,
        "bench-erasure, where they were chosen on another style",
    )
