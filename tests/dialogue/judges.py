"""Dialogues, and tiny judges with room for several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_unlearn import Dialogue, DialogueJudge, JudgePrompt, LitCausalLM, RatingTask, Turn

SCALE = RatingTask(
    "scale", ("1", "2", "3", "4", "5"), (1, 2, 3, 4, 5), ("awful", "bad", "fair", "good", "great"), "it", "Judge it."
)


def dialogue(name: str, text: str = "France", turns: int = 2, ratings: tuple[float, ...] = (3.0,)) -> Dialogue:
    said = (Turn("user" if i % 2 == 0 else "assistant", f"{text} {i}") for i in range(turns))
    return Dialogue(name, tuple(said), ratings)


def dialogues(count: int, first: int = 0) -> list[Dialogue]:
    """Dialogues of several lengths."""
    names = ["Peru", "Italy", "Japan and Spain", "Cuba", "Norway, Chile, Nepal"]
    return [
        dialogue(str(i), names[i % 5], 2 + i % 4, ratings=(1.0 + i % 5, 1.0 + i % 3))
        for i in range(first, first + count)
    ]


def tiny_lm_of(folder: Path, seed: int = 0) -> LitCausalLM:
    """The tiny model with weights that tell dialogues apart, and with more positions."""
    lm = LitCausalLM(folder)
    lm.model.config.max_position_embeddings = 4096
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return lm


def judge_of(folder: Path, prompt: JudgePrompt | None = None, **options: Any) -> DialogueJudge:
    return DialogueJudge(tiny_lm_of(folder), prompt=prompt or JudgePrompt(SCALE), **options)
