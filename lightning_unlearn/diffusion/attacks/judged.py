"""Base class of attacks whose success a judge decides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn.diffusion.judges import Judge, class_numbers, judge_named

__all__ = ["JudgedAttack"]


@dataclass(eq=False)
class JudgedAttack:
    """An attack that succeeds where a judge sees the concept in an image.

    Args:
        judge: Classifies the images; or the name of a judge, see [`judge_named`][lightning_unlearn.judge_named], which
            is loaded when it is first needed.
        concept: The class or classes of the judge that count as success, see
            [`class_numbers`][lightning_unlearn.diffusion.judges.class_numbers].
    """

    judge: str | Judge
    concept: list[str] | str

    top = 1

    @property
    def concepts(self) -> list[str]:
        """The classes of the judge that are success."""
        return [self.concept] if isinstance(self.concept, str) else list(self.concept)

    def load_judge(self) -> Judge:
        """The judge, loaded if it is given by name, and checked."""
        judge = self.judge = judge_named(self.judge) if isinstance(self.judge, str) else self.judge
        if not isinstance(judge, Judge):
            raise TypeError(
                f"judge must be callable and have name, version and classes, but got a {type(judge).__name__}. See "
                "lightning_unlearn.Judge."
            )
        if not self.concepts:
            raise ValueError("concept is an empty list. Give the class of the judge that is success.")
        class_numbers(judge, self.concepts)
        return judge

    def shows(self, images: Tensor) -> tuple[list[bool], list[float]]:
        """Whether images show the concept, and the judge's score of it.

        Args:
            images: Shape ``(B, 3, H, W)``, in [0, 1].
        """
        judge = self.load_judge()
        with torch.no_grad():
            labels, scores = judge(images)
        labels, scores = labels.cpu(), scores.float().cpu()
        concept = torch.tensor(class_numbers(judge, self.concepts))
        shown = torch.isin(labels, concept)
        if self.top > 1:
            best = scores.topk(min(self.top, scores.shape[1])).indices
            shown |= torch.isin(best, concept).any(1)
        return shown.tolist(), scores[:, concept].amax(1).tolist()
