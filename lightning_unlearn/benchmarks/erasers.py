"""What the comparison of concept erasure runs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

__all__ = ["ERASERS", "NAMES", "NAMES_TO_ANCHOR", "Eraser"]

NAMES = "<names>"
"""As an argument of a callback: the words that name what is erased."""

NAMES_TO_ANCHOR = "<names: anchor>"
"""As an argument of a callback: these words, and the one of the anchor that is to replace each."""


class Eraser(NamedTuple):
    """A method with its settings on the miniature.

    Args:
        name: Its name in the table.
        callbacks: As in a YAML file; none for the pipeline as it is.
        trainable: The weights that train.
        lr: Learning rate.
        steps: Updates.
        rows: Whether it needs prompts only, or images with captions.
        batch_size: Rows of each role in a batch.
    """

    name: str
    callbacks: list[dict[str, Any]]
    trainable: Any = "xattn"
    lr: float = 3e-4
    steps: int = 100
    rows: Literal["prompts", "images"] = "prompts"
    batch_size: int = 5


def _callback(name: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"class_path": f"lightning_unlearn.{name}", "init_args": arguments}]


_ADVERSARIAL: dict[str, Any] = {
    "gamma": 1.0, "warmup": 20, "steps": 10,
    "attack": _callback("SoftPromptAttacker", steps=10, step_size=0.03, latents="trajectory")[0],
}  # fmt: skip

_MACE: dict[str, Any] = {
    "concepts": NAMES_TO_ANCHOR, "templates": ["{}", "a {} image", "an image in {} style"],
    "lamb": 0.5, "preserve_scale": 1.0,
}  # fmt: skip

# Settings were tried on the style "ember" with another seed.
ERASERS = [
    Eraser("before", []),
    Eraser("ESD-x", _callback("ESD", steps=10), steps=150),
    Eraser("ESD-u", _callback("ESD", steps=10), "noxattn", 1.5e-4, 100),
    Eraser("ESD on the text encoder", _callback("ESD", steps=10), "text_encoder", 3e-4, 60),
    Eraser("ESD on the text encoder, longer", _callback("ESD", steps=10), "text_encoder", 3e-4, 200),
    Eraser("AdvUnlearn on the text encoder", _callback("AdvUnlearn", **_ADVERSARIAL), "text_encoder", 1e-3, 100),
    Eraser("AdvUnlearn on the UNet", _callback("AdvUnlearn", **_ADVERSARIAL), "xattn", 3e-4, 120),
    Eraser("UCE", _callback("UCE", states="rest"), "kv", steps=1),
    Eraser("RECE", _callback("RECE", states="rest", preserve_scale=1.0, lamb=0.5), "kv", steps=1),
    Eraser("MACE", _callback("MACE", **_MACE), "kv", 3e-3, 50, "images"),
    Eraser("ConceptAblation", _callback("ConceptAblation", latents="sampled", steps=10), "kv", 1e-3, 100),
    Eraser("ForgetMeNot", _callback("ForgetMeNot", concept=NAMES), "xattn", 1e-3, 100, "images"),
    Eraser("SalUn", _callback("DiffusionSalUn") + _callback("SalUn", density=0.5), "xattn", 3e-4, 100, "images"),
    Eraser("EraseDiff", _callback("EraseDiff"), "xattn", 3e-4, 60, "images"),
    Eraser("Scissorhands", _callback("Scissorhands", sparsity=0.98), "xattn", 3e-4, 150, "images"),
    Eraser("SPM", _callback("SPM", steps=10, anchors=2, anchor_weight=10.0, alpha=4.0), "xattn", 1e-2, 60),
]
