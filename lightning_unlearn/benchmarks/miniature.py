"""Concept erasure on the miniature: rows to forget and to keep, a run, and what is left in images and under attack."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.benchmarks.erasers import Eraser
from lightning_unlearn.benchmarks.runs import build, trainer
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.lightning import seed_everything
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.search import PromptSearch
from lightning_unlearn.diffusion.data.captioned_images import CaptionedImageDataModule
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, MiniCanvas, captions, miniature_pipeline
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


@dataclass(frozen=True)
class Concept:
    """A style or an object: the words for it, what replaces it, others of its kind, and those of the other kind."""

    kind: Literal["style", "object"]
    other: Literal["style", "object"]
    words: tuple[str, ...]
    anchor: str
    siblings: list[str]
    partners: list[str]

    def alone(self, word: str) -> str:
        """The prompt that names only a concept of its kind."""
        return f"an image in {word} style" if self.kind == "style" else f"a {word} image"

    def beside(self, word: str, partner: str) -> str:
        """The prompt that names a concept of its kind and one of the other."""
        object, style = (partner, word) if self.kind == "style" else (word, partner)
        return f"a {object} image in {style} style"


def concept(name: str) -> Concept:
    """The concept of a name; a style is replaced by ``photo`` (``photo`` by ``sketch``), an object by the next one.

    Raises:
        ValueError: If there is no such [style][lightning_unlearn.diffusion.data.miniature.STYLES] or
            [object][lightning_unlearn.diffusion.data.miniature.OBJECTS].
    """
    styles, objects = list(STYLES), list(OBJECTS)
    if one_of("target", name, [*styles, *objects]) in STYLES:
        anchor = "photo" if name != "photo" else "sketch"
        return Concept("style", "object", STYLES[name], anchor, [s for s in styles if s != name], objects)
    anchor = objects[(objects.index(name) + 1) % len(objects)]
    return Concept("object", "style", OBJECTS[name], anchor, [o for o in objects if o != name], styles)


def erasure_rows(target: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Prompts of a concept with their anchors, and prompts of all others.

    Example:
        >>> forget, retain = erasure_rows("ring")
        >>> forget[0], len(forget), len(retain)
        ({'prompt': 'a ring image', 'anchor': 'a disk image'}, 21, 24)
    """
    c = concept(target)
    forget = [(c.alone(word), c.alone(c.anchor)) for word in c.words]
    forget += [(c.beside(word, p), c.beside(c.anchor, p)) for p in c.partners for word in c.words]
    retain = [{"prompt": c.beside(name, p)} for name in c.siblings for p in c.partners]
    return [{"prompt": prompt, "anchor": anchor} for prompt, anchor in forget], retain


def _captioned_rows(target: str, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images of a concept with plain captions and those of the anchor, and captioned images of all others."""
    c = concept(target)
    forget = []
    for row in MiniCanvas(images=10, seed=seed, **{f"{c.kind}s": [target]}):  # type: ignore[arg-type, attr-defined]
        partner = c.partners[row[c.other]]
        forget.append({**row, "caption": c.beside(target, partner), "anchor": c.beside(c.anchor, partner)})
    return forget, list(MiniCanvas(images=3, seed=seed, **{f"{c.kind}s": c.siblings}))  # type: ignore[arg-type, call-overload]


def erase(eraser: Eraser, target: str, seed: int, **options: Any) -> tuple[LitTextToImage, dict[str, Any]]:
    """Erase a concept from the miniature pipeline; ``options`` are further arguments of the Trainer.

    Returns:
        The module, and what the run cost.
    """
    seed_everything(seed, verbose=False)
    module = LitTextToImage(str(miniature_pipeline()), trainable=eraser.trainable, lr=eraser.lr)
    c = concept(target)
    callbacks = build(eraser.callbacks, seed=seed, concept=list(c.words), concepts=dict.fromkeys(c.words, c.anchor))
    batches: dict[str, Any] = {"batch_size": eraser.batch_size, "retain_batch_size": eraser.batch_size, "seed": seed}
    data: Any
    if eraser.rows == "prompts":
        data = PromptDataModule(*erasure_rows(target), repeat=max(1, eraser.steps), **batches)
    else:
        data = CaptionedImageDataModule(*_captioned_rows(target, seed), size=32, **batches)
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
    """Accuracies on images of held-out captions, and the FID of those to keep to the base model's.

    Captions and images depend on the seed; of each pair of a style and an object there are ``images``.
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
