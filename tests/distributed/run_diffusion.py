"""Erases a concept from a tiny pipeline, saves what moved: `run_diffusion.py <launcher> <folder>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn import (
    ESD,
    MACE,
    RECE,
    SPM,
    UCE,
    AdvUnlearn,
    ConceptAblation,
    DiffusionSalUn,
    EraseDiff,
    ForgetMeNot,
    Scissorhands,
    SoftPromptAttacker,
    TextEncoderWeights,
)
from tests.diffusion.tiny import erase, images, prompts

torch.set_num_threads(1)

METHODS: dict[str, tuple[Any, Any]] = {
    "ESD": (lambda: ESD(steps=4), "xattn"),
    "ESD-newer": (lambda: ESD(2.0, base="concept", sampler="teacher", steps=4), "noxattn"),
    "ESD-ldm": (lambda: ESD(steps=4, pairing="ldm"), "kv"),
    "ESD-text-encoder": (lambda: ESD(steps=4), TextEncoderWeights(layers=[0])),
    "UCE": (lambda: UCE(), "kv"),
    "RECE": (lambda: RECE(), "kv"),
    "AdvUnlearn": (
        lambda: AdvUnlearn(
            warmup=1, attack=SoftPromptAttacker(steps=2, step_size=0.01, init="latest", tokens=2), steps=4
        ),
        TextEncoderWeights(layers=[0]),
    ),
    "AdvUnlearn-unet": (
        lambda: AdvUnlearn(
            warmup=1, attack=SoftPromptAttacker(steps=2, rule="normalized", latents="trajectory"), steps=4
        ),
        "xattn",
    ),
    "ConceptAblation": (lambda: ConceptAblation(prior_weight=0.5), "kv"),
    "ForgetMeNot": (lambda: ForgetMeNot("van gogh"), "xattn"),
    "DiffusionSalUn": (lambda: DiffusionSalUn(), "xattn"),
    "EraseDiff": (lambda: EraseDiff(inner_steps=1, inner_lr=0.05), "xattn"),
    "Scissorhands": (lambda: Scissorhands(sparsity=0.9, batches=2), "xattn"),
    "MACE": (lambda: MACE({"van gogh": "green"}, lamb=1.0, preserve_scale=0.1), "xattn"),
    "SPM": (lambda: SPM(steps=4, anchors=2, anchor_weight=1.0), "xattn"),
}
ON_IMAGES = ("ConceptAblation", "ForgetMeNot", "DiffusionSalUn", "EraseDiff", "Scissorhands", "MACE")


def main(launcher: str, folder: Path) -> None:
    processes = 1 if launcher == "one" else 2
    for name, (make, trainable) in METHODS.items():
        size = 2 // processes
        on_images = images(batch_size=size, retain_batch_size=size)
        data = on_images if name in ON_IMAGES else prompts(batch_size=size, repeat=3)
        module = erase(
            folder / "model",
            make(),
            data,
            trainable=trainable,
            lr=0.05 if name in ON_IMAGES else 1.0,
            max_epochs=2,
            devices=processes,
            strategy="auto" if processes == 1 else "ddp",
        )
        if module.trainer.is_global_zero:
            torch.save(module.state_dict(), folder / f"{launcher}-{name}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
