"""Erases a concept from a tiny pipeline, saves what moved: `run_diffusion.py <launcher> <folder>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn import ESD, UCE, TextEncoderWeights
from lightning_unlearn.callbacks.diffusion.adv_unlearn import AdvUnlearn
from tests.diffusion.tiny import erase, prompts

torch.set_num_threads(1)

METHODS: dict[str, tuple[Any, Any]] = {
    "ESD": (lambda: ESD(steps=4), "xattn"),
    "ESD-newer": (lambda: ESD(2.0, base="concept", sampler="teacher", steps=4), "noxattn"),
    "ESD-ldm": (lambda: ESD(steps=4, pairing="ldm"), "kv"),
    "ESD-text-encoder": (lambda: ESD(steps=4), TextEncoderWeights(layers=[0])),
    "UCE": (lambda: UCE(), "kv"),
    "AdvUnlearn": (
        lambda: AdvUnlearn(warmup=1, init="latest", tokens=2, attack_steps=2, attack_step_size=0.01, steps=4),
        TextEncoderWeights(layers=[0]),
    ),
    "AdvUnlearn-unet": (
        lambda: AdvUnlearn(warmup=1, attack_steps=2, attack_rule="normalized", attack_latents="trajectory", steps=4),
        "xattn",
    ),
}


def main(launcher: str, folder: Path) -> None:
    processes = 1 if launcher == "one" else 2
    for name, (make, trainable) in METHODS.items():
        data = prompts(batch_size=2 // processes, repeat=3)
        module = erase(
            folder / "model",
            make(),
            data,
            trainable=trainable,
            lr=1.0,
            max_epochs=2,
            devices=processes,
            strategy="auto" if processes == 1 else "ddp",
        )
        if module.trainer.is_global_zero:
            torch.save(module.state_dict(), folder / f"{launcher}-{name}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
