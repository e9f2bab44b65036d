"""What concept erasure costs: UCE at Stable Diffusion's sizes, AdvUnlearn's passes, an attack on prompts in batches."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from lightning_unlearn import (
    AdvUnlearn,
    LitTextToImage,
    PromptAttack,
    PromptDataModule,
    PromptSearch,
    SoftPromptAttacker,
)
from lightning_unlearn.benchmarks.miniature import erasure_rows
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from lightning_unlearn.diffusion.judges import MiniatureJudge
from lightning_unlearn.functional.diffusion.uce import uce_map


def uce() -> None:
    """Keys and values of the 16 layers of SD 1.4: one concept, 100 prompts to keep, in fp64."""
    text, outs = 768, [320] * 10 + [640] * 10 + [1280] * 12
    change = uce_map(torch.randn(1, text), torch.randn(1, text), torch.randn(100, text))
    for out in outs:
        weight = torch.randn(out, text)
        (weight.double() + weight.double() @ change).float()


def passes(latents: Any, gamma: float) -> int:
    """Passes of the UNet in three attacked steps of AdvUnlearn with the paper's K = 30 and 50 sampler steps."""
    forget, retain = erasure_rows("negative")
    module = LitTextToImage(str(miniature_pipeline()), trainable="text_encoder")
    method = AdvUnlearn(warmup=0, gamma=gamma, attack=SoftPromptAttacker(latents=latents))
    trainer = L.Trainer(
        max_steps=3, callbacks=[method], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, PromptDataModule(forget, retain, batch_size=1, retain_batch_size=5))
    return method.passes.unet


def attack(batch_size: int) -> Callable[[], None]:
    """Ten prompts, two noise levels."""
    model = LitTextToImage(str(miniature_pipeline()), trainable="text_encoder").eval()
    rows = [{"prompt": f"a {name} image in sketch style", "seed": i} for i, name in enumerate(["ring", "box"] * 5)]
    # No image shows a class that the prompt does not name: no prompt ends early.
    search = PromptSearch(tokens=3, levels=2, iterations=10)
    method = PromptAttack(MiniatureJudge("style"), "ember", search, sampler_steps=10, batch_size=batch_size)
    targets = model.generate([str(row["prompt"]) for row in rows], list(range(10)), steps=10)
    return lambda: (method.run(model, rows, targets), None)[1]


def seconds(run: Callable[[], None], repeats: int) -> float:
    """Median; the first run is to warm up."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.diffusion", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"UCE of one concept in SD 1.4: {seconds(uce, args.repeats):.2f} s")
    for gamma in (0.0, 0.5):
        fresh, cached = passes("fresh", gamma), passes("trajectory", gamma)
        print(f"AdvUnlearn, gamma {gamma}: UNet passes fresh {fresh} / trajectory {cached} = {fresh / cached:.1f}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        one, ten = (seconds(attack(size), args.repeats) for size in (1, 10))
        print(f"attack on ten prompts one by one / together, {threads} threads: {one / ten:.2f}")


if __name__ == "__main__":
    main()
