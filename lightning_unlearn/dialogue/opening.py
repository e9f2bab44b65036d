"""The parts of a judge, from what its constructor is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lightning_unlearn.dialogue.extractors import Extractor
from lightning_unlearn.dialogue.probe import ProbeExtractor, same_prompt, saved_probe
from lightning_unlearn.dialogue.prompt import JudgePrompt
from lightning_unlearn.dialogue.task import RatingTask, task_of
from lightning_unlearn.language.causal_lm import DType, LitCausalLM
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["Opened", "opened", "prompt_format_of", "prompt_of"]

_PLAIN = "{question}\n"  # the cue stands on a line of its own


class Opened(NamedTuple):
    """Parts of a judge.

    Args:
        lm: The model.
        prompt: How it is asked.
        extractor: How its ratings are read; ``None`` for the default of the prompt.
        prompt_format: Format that was saved with a probe.
    """

    lm: LitCausalLM
    prompt: JudgePrompt
    extractor: Extractor | None
    prompt_format: PromptFormat | None


def opened(
    model: Any,
    task: RatingTask | str | None,
    prompt: JudgePrompt | None,
    extractor: Extractor | None,
    lora: Any,
    lr: float,
    dtype: DType,
) -> Opened:
    """Open a judge's model, and the probe that is beside it.

    Raises:
        ValueError: If task and prompt do not belong together, or the prompt is another than that of the probe.
    """
    saved = saved_probe(model)
    if saved is None or extractor is not None:
        prompt = prompt_of(task, prompt)
        return Opened(_opened_model(saved.model if saved else model, lora, lr, dtype), prompt, extractor, None)
    asked = prompt_of(task, saved.prompt if prompt is None else prompt)
    if not same_prompt(asked, saved.prompt):
        raise ValueError(
            f"The probe in {model} was fitted with another prompt (task, mode or max_length) than the one given. Leave "
            "prompt out: the folder has it."
        )
    lm = _opened_model(saved.model, lora, lr, dtype)
    return Opened(lm, asked, ProbeExtractor.of(saved.probe), PromptFormat.load(Path(model)))


def prompt_of(task: RatingTask | str | None, prompt: JudgePrompt | None) -> JudgePrompt:
    """The prompt that is given, or one for the task.

    Raises:
        ValueError: If both are given and differ in their task.
    """
    if prompt is None:
        return JudgePrompt() if task is None else JudgePrompt(task)
    if task is not None and task_of(task) != prompt.task:
        raise ValueError(
            f"task is {task_of(task).name!r}, but the prompt asks for {prompt.task.name!r}. Leave task out: the prompt "
            "has it."
        )
    return prompt


def _opened_model(model: Any, lora: Any, lr: float, dtype: DType) -> LitCausalLM:
    """The model of a judge.

    Raises:
        ValueError: If adapters are asked of a `LitCausalLM` that is made already.
    """
    if not isinstance(model, LitCausalLM):
        return LitCausalLM(model, dtype=dtype, lora=lora, lr=lr, warmup=0.03, schedule="cosine")
    if lora is not None:
        raise ValueError("The LitCausalLM is made already. Give lora to it: LitCausalLM(..., lora=...).")
    return model


def prompt_format_of(lm: LitCausalLM, given: PromptFormat | None) -> PromptFormat:
    """The format that is given, or that of the model; plain text where it has none.

    Raises:
        ValueError: If there is no tokenizer.
    """
    own = given or lm.prompt or PromptFormat()
    tokenizer = own.tokenizer if own.tokenizer is not None else lm.tokenizer
    if tokenizer is None:
        raise ValueError(
            "The judge's model comes without a tokenizer. Pass LitCausalLM(..., tokenizer=...) as the model, or "
            "prompt_format=PromptFormat(tokenizer)."
        )
    own = replace(own, tokenizer=tokenizer)
    if given is None and not own.is_chat and own.prompt_format is None:
        return replace(own, prompt_format=_PLAIN, system_prompt=None)
    return own
