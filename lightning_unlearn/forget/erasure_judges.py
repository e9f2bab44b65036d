"""Judges of images before and after erasure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn.diffusion.judges import CLIPJudge, Judge, class_numbers, judge_named
from lightning_unlearn.forget.erasure_prompts import ErasurePrompts

__all__ = ["Seen", "find_judge", "seen_by"]

_OTHER = "a picture"


@dataclass(frozen=True)
class Seen:
    """What one judge sees in the images of a request.

    Args:
        judge: Its name and version.
        shown: Whether it sees the concept in each image to forget, before and after; ``None`` where it is no judge of
            the concept.
        kept: Whether each image to keep is of the class that it was of before.
    """

    judge: str
    shown: tuple[list[bool], list[bool]] | None
    kept: list[bool]

    @property
    def shares(self) -> tuple[float, float] | None:
        """Shares of the images to forget that show the concept, before and after."""
        return None if self.shown is None else (_share(self.shown[0]), _share(self.shown[1]))


def find_judge(name: str, prompts: ErasurePrompts) -> Judge:
    """The judge of a name, see [`judge_named`][lightning_unlearn.judge_named].

    Of a CLIP model without classes, ``"clip:<folder or hub id>"``, they are made from the prompts: the concept, each
    prompt to keep that is drawn, and just a picture.

    Args:
        name: The name.
        prompts: The prompts of the request.

    Raises:
        ValueError: If nothing has that name.
    """
    kind, _, model = name.partition(":")
    if kind != "clip" or ":" in model:
        return judge_named(name)
    kept = dict.fromkeys(prompts.pictures[i].prompt for i in prompts.of("keep"))
    concept = prompts.words[0]
    return CLIPJudge(model, {concept: f"{_OTHER}, {concept}", _OTHER: _OTHER, **{prompt: prompt for prompt in kept}})


def seen_by(
    judge: Judge, classes: Sequence[str] | None, prompts: ErasurePrompts, before: Tensor, after: Tensor
) -> Seen:
    """Let a judge look at all images.

    Args:
        judge: The judge.
        classes: Its classes of the concept; ``None`` if it knows others only.
        prompts: What the images are of.
        before: Images before, shape ``(N, 3, H, W)``, in [0, 1].
        after: Images after, of the same prompts and seeds.
    """
    with torch.no_grad():
        old, new = judge(before)[0].cpu(), judge(after)[0].cpu()
    forget, keep = prompts.of("forget"), prompts.of("keep")
    shown = None
    if classes is not None:
        wanted = torch.tensor(class_numbers(judge, classes))
        shown = (torch.isin(old[forget], wanted).tolist(), torch.isin(new[forget], wanted).tolist())
    return Seen(f"{judge.name} {judge.version}", shown, (old[keep] == new[keep]).tolist())


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)
