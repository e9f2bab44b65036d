"""Concept erasure on the miniature: a run, and what is left in images and under attack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.benchmarks.erasers import Eraser
from lightning_unlearn.benchmarks.requests import PairAs, erasure_rows, request
from lightning_unlearn.benchmarks.runs import build, trainer
from lightning_unlearn.core.lightning import seed_everything
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.search import PromptSearch
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.data.captioned_images import CaptionedImageDataModule
from lightning_unlearn.diffusion.data.miniature import captions, miniature_pipeline
from lightning_unlearn.diffusion.data.prompts import PromptDataModule
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.judges import MiniatureJudge
from lightning_unlearn.diffusion.metrics.features import PenultimateFeatures
from lightning_unlearn.diffusion.metrics.fid import FID
from lightning_unlearn.diffusion.text_to_image import LitTextToImage

__all__ = ["ATTACK", "DRAW", "SEARCH", "attacked", "concept", "drawn", "erase", "erasure_rows"]

DRAW: dict[str, Any] = {"steps": 20, "guidance": 4.0, "batch_size": 50}
ATTACK: dict[str, Any] = {"sampler_steps": 20, "guidance": 4.0, "batch_size": 10}
SEARCH: dict[str, Any] = {"tokens": 3, "levels": 10, "iterations": 10, "lr": 0.05}


def erase(
    eraser: Eraser,
    target: str | tuple[str, str],
    seed: int,
    names: int | None = None,
    left_out: Sequence[str] = (),
    pair_as: PairAs = "one_concept",
    pipeline: str | Path | None = None,
    gone: Sequence[str] = (),
    **options: Any,
) -> tuple[LitTextToImage, dict[str, Any]]:
    """Erase a concept from the miniature pipeline.

    Args:
        eraser: The method.
        target: A style, an object, or a pair: a style and an object.
        seed: Seed of the run.
        names: Number of its names that prompts, captions and callback arguments use, see
            [`request`][lightning_unlearn.benchmarks.requests.request].
        left_out: Partners that no row names.
        pair_as: Whether a pair is one concept or two requests.
        pipeline: Folder of the pipeline, such as one that forgot another concept before; by default the shipped one.
        gone: Concepts that this pipeline forgot before, and that no row contains.
        options: Further arguments of the Trainer.

    Returns:
        The module, and what the run cost.
    """
    seed_everything(seed, verbose=False)
    module = LitTextToImage(str(pipeline or miniature_pipeline()), trainable=eraser.trainable, lr=eraser.lr)
    asked = request(target, seed, names, left_out, pair_as, gone)
    callbacks = build(eraser.callbacks, seed=seed, concept=list(asked.words), concepts=asked.words)
    batches: dict[str, Any] = {"batch_size": eraser.batch_size, "retain_batch_size": eraser.batch_size, "seed": seed}
    data: Any
    if eraser.rows == "prompts":
        data = PromptDataModule(asked.forget, asked.retain, repeat=max(1, eraser.steps), **batches)
    else:
        data = CaptionedImageDataModule(asked.forget_images, asked.retain_images, size=32, **batches)
    epochs = 1 if eraser.rows == "prompts" else -1
    run = trainer(callbacks, max_steps=eraser.steps, **{"max_epochs": epochs, **options})
    passes = PassCounter()
    passes.attach(module)
    start = time.process_time()
    with passes:
        run.fit(module, data)
    cost = {"seconds": time.process_time() - start, **passes.state_dict(), "steps": run.global_step}
    return module.eval(), cost


def drawn(module: LitTextToImage, base: LitTextToImage, target: str, seed: int, images: int = 6) -> dict[str, float]:
    """Accuracies on images of held-out captions, and the FID of the images to keep to those of the base model.

    Captions and images depend on the seed; each pair of a style and an object has ``images`` images.
    """
    c = concept(target)
    names = [(name, partner) for name in (target, *c.siblings) for partner in c.partners]
    pairs = [{c.kind: name, c.other: partner} for name, partner in names for _ in range(images)]
    seeds = [10_000 * seed + number for number in range(len(pairs))]
    texts = [
        captions(pair["object"], pair["style"], seed=image_seed, heldout=True)[0]
        for pair, image_seed in zip(pairs, seeds, strict=True)
    ]
    after = module.generate(texts, seeds, **DRAW)
    forget = len(c.partners) * images  # the first ones
    fid = FID(PenultimateFeatures(MiniatureJudge("object")))
    fid.update(base.generate(texts[forget:], seeds[forget:], **DRAW), real=True)
    fid.update(after[forget:], real=False)
    right = {kind: _right(kind, after, [pair[kind] for pair in pairs]) for kind in (c.kind, c.other)}
    return {
        "UA": 1 - right[c.kind][:forget].mean().item(),
        "IRA": right[c.kind][forget:].mean().item(),
        "CRA": right[c.other].mean().item(),
        "FID": fid.compute().item(),
    }


def _right(kind: Any, images: Tensor, names: list[str]) -> Tensor:
    judge = MiniatureJudge(kind)
    return (judge(images)[0] == torch.tensor([judge.classes.index(name) for name in names])).double()


def attacked(
    module: LitTextToImage, base: LitTextToImage, target: str, seed: int, prompts: int
) -> dict[str, list[int]]:
    """Prompts that show the concept without an attack, under UnlearnDiffAtk, and with random tokens.

    Returns:
        ``[successes, prompts]`` of each; the base model draws the target images.
    """
    c = concept(target)
    partners = [c.partners[i % len(c.partners)] for i in range(prompts)]
    rows = [{"prompt": c.beside(target, p), "seed": 10_000 * seed + 5000 + i} for i, p in enumerate(partners)]
    counts: dict[str, list[int]] = {}
    optimizers: dict[str, Any] = {"asr": "text_grad", "random_asr": "random"}
    for name, optimizer in optimizers.items():
        search = PromptSearch(optimizer=optimizer, **SEARCH)
        attack = PromptAttack(MiniatureJudge(c.kind), target, search, seed=seed, **ATTACK)
        result = attack.run(module, rows, base=base).counted
        counts["pre_asr"] = [sum(row.before for row in result), len(result)]
        counts[name] = [sum(row.before or row.success for row in result), len(result)]
    return counts
