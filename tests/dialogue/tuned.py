"""A tiny judge that is fine-tuned on a few dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.prompt import JudgePrompt
from lightning_unlearn.dialogue.task import RatingTask
from lightning_unlearn.dialogue.tuning import JudgeTuning, Target

SHORT = RatingTask("short", ("1", "2", "3"), (1.0, 2.0, 3.0), ("bad", "fair", "good"), "it", "Rate.")
LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
RATINGS = ((1.0, 1.0, 2.0), (3.0, 3.0), (2.0, 3.0, 1.0, 2.0), (1.0,))


def dialogues(count: int = 4) -> list[Dialogue]:
    return [
        Dialogue(str(i), (Turn("user", f"Is it {'France' * (i + 1)}?"), Turn("assistant", "No.")), RATINGS[i % 4])
        for i in range(count)
    ]


def tiny_judge(
    model: Path, target: Target = "soft", lora: dict[str, Any] | None = LORA, prompt: JudgePrompt | None = None
) -> DialogueJudge:
    torch.manual_seed(0)
    prompt = prompt or JudgePrompt(SHORT)
    return DialogueJudge(model, prompt=prompt, shots=0, lora=lora, lr=1e-2, tuning=JudgeTuning(target))


def loader(count: int = 4, batch_size: int = 4) -> DataLoader:
    return DataLoader(dialogues(count), batch_size, collate_fn=list)  # type: ignore[arg-type]
