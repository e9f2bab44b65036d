"""General ability on tasks of lm-evaluation-harness, run in this process on a loaded model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import gather_objects, rank, world_size
from lightning_unlearn.core.lightning import isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["GeneralAbility", "general_ability"]


class GeneralAbility(NamedTuple):
    """Scores on tasks of lm-evaluation-harness.

    Args:
        tasks: By task and metric the score, such as ``tasks["mmlu"]["acc"]``; standard errors are called
            ``acc_stderr``. A filter other than none is a part of the name: ``exact_match,strict-match``.
        groups: The same of groups of tasks.
        samples: Number of questions by task.
        settings: What the scores depend on, the version of the harness among it.
    """

    tasks: dict[str, dict[str, float]]
    groups: dict[str, dict[str, float]]
    samples: dict[str, int]
    settings: dict[str, Any]


def general_ability(
    module: LitCausalLM,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: float | None = None,
    batch_size: int | str = 8,
    max_length: int | None = None,
    apply_chat_template: bool | str = False,
    system_instruction: str | None = None,
    task_manager: Any = None,
    bootstrap_iters: int = 0,
) -> GeneralAbility:
    """Scores on tasks of lm-evaluation-harness, such as ``["mmlu", "wmdp", "truthfulqa_mc2", "wikitext"]``.

    The harness gets the model and its tokenizer as they are, and every setting below. Weights, modes, ``use_cache``,
    the tokenizer's padding and the global random states are afterwards what they were. With several processes the first
    one runs the tasks, and all return its scores, after at most the timeout of the process group; where the weights are
    sharded, all processes run them together.

    Args:
        module: The model with its tokenizer.
        tasks: Names of tasks or groups; or, for a local task, the dict of its config.
        num_fewshot: Solved examples before a question; ``None`` for each task's own number.
        limit: Questions a task, or a share of them below 1; for trials.
        batch_size: Questions in a pass, or ``"auto"``.
        max_length: Longest input in tokens; ``None`` for the model's own.
        apply_chat_template: Whether questions go through the tokenizer's chat template, or the name of a template.
        system_instruction: System prompt.
        task_manager: A ``lm_eval.tasks.TaskManager`` that knows tasks of your own.
        bootstrap_iters: Resamples for standard errors; 0 leaves out those that need them.

    Raises:
        ImportError: If lm-evaluation-harness is missing.
        ValueError: If there are no tasks, or the model has no tokenizer.
        RuntimeError: If the first process failed; raised on the others.

    References:
        Gao et al., *The Language Model Evaluation Harness*, 2024, https://zenodo.org/records/12608602.
    """
    if isinstance(tasks, str) or not tasks or module.tokenizer is None:
        raise ValueError(f"A list of tasks and a model with a tokenizer are needed, but got tasks={tasks!r}.")
    at_least("bootstrap_iters", bootstrap_iters, 0)
    settings = {
        "num_fewshot": num_fewshot,
        "limit": limit,
        "apply_chat_template": apply_chat_template,
        "system_instruction": system_instruction,
        "bootstrap_iters": bootstrap_iters,
    }
    sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
    outcome: GeneralAbility | Exception | None = None
    if sharded or rank() == 0:
        try:
            outcome = _evaluate(module, tasks, batch_size, max_length, task_manager, settings)
        except Exception as error:
            # The other processes wait for this one, and have to hear of it.
            if sharded or world_size() == 1:
                raise
            outcome = error
    if sharded:
        assert isinstance(outcome, GeneralAbility)
        return outcome
    if rank() == 0 and isinstance(outcome, Exception):
        gather_objects(repr(outcome))
        raise outcome
    first = gather_objects(outcome)[0]
    if not isinstance(first, tuple):
        raise RuntimeError(f"lm-evaluation-harness failed on the first process: {first}")
    return GeneralAbility(*first)


def _evaluate(
    module: LitCausalLM,
    tasks: Sequence[str],
    batch_size: int | str,
    max_length: int | None,
    task_manager: Any,
    settings: dict[str, Any],
) -> GeneralAbility:
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(
            f'General ability needs lm-evaluation-harness: pip install "lightning-unlearn[lm-eval]" ({error})'
        ) from None
    with _as_it_was(module):
        # Without its tokenizer the harness would load another by the model's name.
        model = HFLM(pretrained=module.model, tokenizer=module.tokenizer, batch_size=batch_size, max_length=max_length)
        found = lm_eval.simple_evaluate(
            model=model, tasks=list(tasks), task_manager=task_manager, log_samples=False, **settings
        )
    samples = {task: int(count["effective"]) for task, count in (found.get("n-samples") or {}).items()}
    kept = {**settings, "batch_size": batch_size, "max_length": max_length, "lm_eval": _version()}
    return GeneralAbility(_numbers(found["results"]), _numbers(found.get("groups") or {}), samples, kept)


@contextmanager
def _as_it_was(module: LitCausalLM) -> Iterator[None]:
    """Put back what the harness changes in a model and a tokenizer."""
    model, tokenizer = module.model, module.tokenizer
    padding = {name: getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "pad_token")}
    owned: list[Any] = [getattr(model, name, None) for name in ("config", "generation_config")]
    configs = [(config, config.use_cache) for config in owned if hasattr(config, "use_cache")]
    # The harness ties weights anew, and a head that was untied on purpose would be lost.
    model.__dict__["tie_weights"] = lambda *_, **__: None
    try:
        with isolate_rng(), evaluating(module):
            yield
    finally:
        del model.__dict__["tie_weights"]
        for config, use_cache in configs:
            config.use_cache = use_cache
        for name, value in padding.items():
            if getattr(tokenizer, name, None) != value:
                setattr(tokenizer, name, value)


def _numbers(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Scores by task and metric, under names without the filter that is none."""
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in scores.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and "," in name
        }
        for task, scores in results.items()
    }


def _version() -> str:
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return "unknown"
