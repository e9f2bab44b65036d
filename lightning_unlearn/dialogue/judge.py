"""A language model that rates dialogues."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.extractors import Extractor
from lightning_unlearn.dialogue.prompt import BuiltPrompt, JudgePrompt
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.selectors.selector import Selector
from lightning_unlearn.dialogue.task import RatingTask
from lightning_unlearn.language.causal_lm import DType, LitCausalLM
from lightning_unlearn.language.prompt_format import PromptFormat

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["DialogueJudge"]


class DialogueJudge(LightningModule):
    """A language model that rates dialogues.

    Args:
        model: Hub id, folder, adapter folder or GGUF file of a causal language model; a model of transformers; or a
            `LitCausalLM`, which has more ways to load one.
        task: What is rated; by default the task of ``prompt``.
        prompt: How it is asked; by default ``JudgePrompt(task)``.
        selector: Chooses the examples of each dialogue; by default the first ``shots`` of the pool for all of them.
        shots: Examples in a prompt, where there is a pool.
        extractor: How the rating is read; by default from the logits (of ``analysis_first`` after the analysis).
        pool: Rated dialogues that examples are taken from; a data module with ``pool`` gives its own.
        lora: Adapters to train.
        lr: Learning rate.
        dtype: Type of the weights.
        prompt_format: Format of the model's prompts; by default its own.
        max_tokens: Largest batch in tokens.
    """

    lm: LitCausalLM
    prompt: JudgePrompt
    pool: list[Dialogue]

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | LitCausalLM,
        task: RatingTask | str | None = None,
        prompt: JudgePrompt | None = None,
        selector: Selector | None = None,
        shots: int = 4,
        extractor: Extractor | None = None,
        pool: Sequence[Dialogue] | None = None,
        lora: LoraConfig | dict[str, Any] | None = None,
        lr: float = 2e-4,
        dtype: DType = "float32",
        prompt_format: PromptFormat | None = None,
        max_tokens: int = 8192,
    ) -> None:
        super().__init__()

    @property
    def task(self) -> RatingTask:
        """What is rated."""
        raise NotImplementedError

    def prompts(self, dialogues: Sequence[Dialogue], shots: int | None = None) -> list[BuiltPrompt]:
        """The prompt of each dialogue, with its examples."""
        raise NotImplementedError

    def forward(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue."""
        raise NotImplementedError

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue, in evaluation mode and without gradients."""
        raise NotImplementedError
