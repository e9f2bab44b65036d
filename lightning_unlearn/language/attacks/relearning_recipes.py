"""Settings of relearning attacks, and published recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_unlearn.core.checks import above, at_least, between
from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["RELEARNING_RECIPES", "RelearningRecipe", "learning_rates"]


@dataclass(frozen=True)
class RelearningRecipe:
    """Settings of the fine-tuning in a relearning attack, by AdamW with a constant learning rate.

    Args:
        lr: Learning rate; `learning_rates` gives those to try.
        steps: Updates before each measurement, ascending from 0. The last one counts, fixed in advance.
        epochs: Passes over the taught rows, in place of ``steps``; measured after each.
        batch_size: Rows an update.
        weight_decay: Decoupled weight decay.
        warmup: Share of the updates over which the learning rate rises from 0; at least one update, unless 0.
        clip: Largest norm of the gradient; ``None`` leaves it as it is.
        max_length: Longest row in tokens; it is cut there.
        rows: Taught rows at most, the first of those given.
        scores_taught: Whether the taught rows are scored too. Some published recipes teach all forget rows and score
            the same ones: that measures teaching, and enters no verdict.

    Raises:
        ValueError: If a number is out of range.
    """

    lr: float = 1e-5
    steps: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    epochs: int | None = None
    batch_size: int = 4
    weight_decay: float = 0.0
    warmup: float = 0.0
    clip: float | None = 1.0
    max_length: int = 512
    rows: int | None = None
    scores_taught: bool = False

    def __post_init__(self) -> None:
        above("lr", self.lr, 0)
        at_least("batch_size", self.batch_size, 1)
        at_least("max_length", self.max_length, 2)
        between("warmup", self.warmup, 0, 1)
        if self.epochs is not None:
            at_least("epochs", self.epochs, 1)
        steps = tuple(self.steps)
        if steps[:1] != (0,) or len(steps) < 2 or list(steps) != sorted(set(steps)):
            raise ValueError(f"steps must ascend from 0 to at least one update, but got {steps}.")

    def measured(self, rows: int) -> tuple[int, ...]:
        """Updates before each measurement, for a number of taught rows."""
        if self.epochs is None:
            return tuple(self.steps)
        per_epoch = math.ceil(rows / self.batch_size)
        return tuple(per_epoch * epoch for epoch in range(self.epochs + 1))

    def factor(self, step: int, total: int) -> float:
        """Share of the learning rate at an update, out of a total number of updates."""
        warmup = max(1, int(self.warmup * total)) if self.warmup else 0
        return step / warmup if step < warmup else 1.0


RELEARNING_RECIPES: dict[str, RelearningRecipe] = {
    "default": RelearningRecipe(),
    "full": RelearningRecipe(steps=(0, 1, 2, 5, 10, 20, 50, 100)),
    "unlearn_smooth_wmdp": RelearningRecipe(steps=(0, 5, 10, 15), warmup=0.1, rows=60),
    "unlearn_smooth_muse_news": RelearningRecipe(steps=(0, 100, 125, 150), max_length=2048, scores_taught=True),
    "unlearn_smooth_muse_books": RelearningRecipe(steps=(0, 50, 75, 100), max_length=2048, scores_taught=True),
    "rtt": RelearningRecipe(lr=5e-6, epochs=6),
    "open_unlearning_tofu": RelearningRecipe(lr=2e-5, epochs=1, batch_size=32, scores_taught=True),
}
"""Recipes by name.

The last five are published: those of Unlearn-Smooth (arXiv:2502.05374) for WMDP and MUSE; that of Deeb and Roger
(arXiv:2410.08827), whose learning rates are 1e-7 to 5e-6 by factors of 2, here the largest; and open-unlearning's for
TOFU. Where a publication trains weights of half precision, these train fp32 copies: at such learning rates, most
updates of bf16 weights round to nothing.
"""


def learning_rates(module: LitCausalLM, lora: bool = False) -> tuple[float, ...]:
    """Learning rates to try; the one at which most comes back counts.

    Args:
        module: The attacked model.
        lora: Whether the attack trains adapters.

    Returns:
        1e-5, also 5e-5 below a billion parameters, and 2e-4 for adapters alone.
    """
    if lora:
        return (2e-4,)
    small = sum(p.numel() for p in module.model.parameters()) < 1_000_000_000
    return (1e-5, 5e-5) if small else (1e-5,)
