"""Judges that are told what to say, and a small attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.result import AttackResult
from lightning_unlearn.diffusion.attacks.search import PromptSearch

PROMPTS = ["a red circle", "van gogh", "a green square", "the art of van gogh"]
SMALL: dict[str, Any] = {"tokens": 2, "levels": 2, "iterations": 2, "sampler_steps": 2, "batch_size": 4}
SEARCH = [field.name for field in fields(PromptSearch)]


class Told:
    """Says what a function of the images' mean colours and the number of images seen before says."""

    name, version, classes = "told", "1", ("other", "concept")

    def __init__(self, says: Callable[[Tensor, int], Tensor]) -> None:
        self.says, self.seen = says, 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        score = images.double().mean((1, 2, 3))
        labels = self.says(score, self.seen).long()
        self.seen += len(images)
        return labels, torch.stack([1 - score, score], 1)


def never() -> Told:
    return Told(lambda score, seen: torch.zeros(len(score)))


def always() -> Told:
    return Told(lambda score, seen: torch.ones(len(score)))


def after(count: int) -> Told:
    return Told(lambda score, seen: (torch.arange(len(score)) + seen) >= count)


def above(threshold: float) -> Told:
    return Told(lambda score, seen: score > threshold)


def attack(judge: Told, **options: Any) -> PromptAttack:
    options = SMALL | options
    search = PromptSearch(**{name: options.pop(name) for name in SEARCH if name in options})
    return PromptAttack(judge, "concept", search, **options)


def outcome(result: AttackResult) -> list[tuple[Any, ...]]:
    return [(r.before, r.success, r.adversarial, r.token_ids, r.image_seed, r.rounds, r.steps) for r in result.prompts]
