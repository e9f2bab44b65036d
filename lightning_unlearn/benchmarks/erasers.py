"""Methods of the comparison of concept erasure, with their settings on the miniature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightning_unlearn.benchmarks.runs import Description, describe

__all__ = ["ERASERS", "Eraser"]


@dataclass(frozen=True)
class Eraser:
    """A method with its settings; without callbacks, the pipeline stays as it is."""

    name: str
    callbacks: tuple[Description, ...] = ()
    trainable: Any = "xattn"
    lr: float = 3e-4
    steps: int = 100
    rows: Literal["prompts", "images"] = "prompts"
    batch_size: int = 5


_ESD = (describe("ESD", steps=10),)
_ATTACKER = describe("SoftPromptAttacker", steps=10, step_size=0.03, latents="trajectory")
_ADV_UNLEARN = (describe("AdvUnlearn", gamma=1.0, warmup=20, steps=10, attack=_ATTACKER),)
_TEMPLATES = ["{}", "a {} image", "an image in {} style"]


def _eraser(name: str, trainable: str, lr: float, steps: int, rows: Any = "prompts", /, **arguments: Any) -> Eraser:
    return Eraser(name, (describe(name, **arguments),), trainable, lr, steps, rows)


# Settings were tried on the style "ember" with another seed.
ERASERS = [
    Eraser("before"),
    Eraser("ESD-x", _ESD, steps=150),
    Eraser("ESD-u", _ESD, "noxattn", 1.5e-4, 100),
    Eraser("ESD on the text encoder", _ESD, "text_encoder", 3e-4, 60),
    Eraser("ESD on the text encoder, longer", _ESD, "text_encoder", 3e-4, 200),
    Eraser("AdvUnlearn on the text encoder", _ADV_UNLEARN, "text_encoder", 1e-3, 100),
    Eraser("AdvUnlearn on the UNet", _ADV_UNLEARN, "xattn", 3e-4, 120),
    _eraser("UCE", "kv", 3e-4, 1, states="rest"),
    _eraser("RECE", "kv", 3e-4, 1, states="rest", preserve_scale=1.0, lamb=0.5),
    _eraser("MACE", "kv", 3e-3, 50, "images", templates=_TEMPLATES, lamb=0.5, preserve_scale=1.0),
    _eraser("ConceptAblation", "kv", 1e-3, 100, latents="sampled", steps=10),
    _eraser("ForgetMeNot", "xattn", 1e-3, 100, "images"),
    Eraser("SalUn", (describe("DiffusionSalUn"), describe("SalUn", density=0.5)), "xattn", 3e-4, 100, "images"),
    _eraser("EraseDiff", "xattn", 3e-4, 60, "images"),
    _eraser("Scissorhands", "xattn", 3e-4, 150, "images", sparsity=0.98),
    _eraser("SPM", "xattn", 1e-2, 60, anchors=2, anchor_weight=10.0, alpha=4.0, steps=10),
]
