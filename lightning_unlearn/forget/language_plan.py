"""Plan of a request about a language model: what will be done, what it costs, and what the user should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_unlearn.audit.data import MIN_PROBES, with_phrasings
from lightning_unlearn.audit.depth import cost_of, plan_of, seconds_of
from lightning_unlearn.forget.request import Plan
from lightning_unlearn.language.chat import Messages
from lightning_unlearn.language.data.own_answers import OwnAnswers

if TYPE_CHECKING:
    from lightning_unlearn.forget.language import LanguageRequest

__all__ = ["language_plan"]

_BACKWARD = 3  # passes that a step takes
_BUSY = 1.3  # times as long as on a free CPU, from which on the plan says both
_WATCHING = 2  # times as long as the steps alone, as measuring when to stop takes as much again


def language_plan(request: LanguageRequest) -> Plan:
    """The plan of a request that has been checked.

    Args:
        request: The request.
    """
    tables, parameters = request.tables, request.facts["parameters"]
    kept = (
        "the model's own answers to neutral questions"
        if request.auto
        else f"{len(tables['retain'])} rows of {request.sources['retain']}"
    )
    wrong = "the likeliest wrong answers"
    reference = f"rows that it has never seen, or as {wrong}" if "never_seen" in tables else wrong
    ends = f"at the latest after {request.steps} steps"
    if request.stops:
        ends = f"the forget rows are as unlikely as {reference} were to the model before; {ends}"
    lines = {
        "model": f"{request.model} ({parameters / 1e6:,.0f} million parameters)",
        "to forget": f"{len(tables['forget'])} rows of {request.sources['forget']}",
        "to keep": kept,
        "method": f"{request.name}, lr {request.lr:g}{', adapters (LoRA)' if request.lora else ''}",
        "stops when": ends,
        "cost": _cost(request),
        "evidence": f"audit of the models before and after, depth {request.depth}",
    }
    return Plan(lines, [*_notes(request)])


def _cost(request: LanguageRequest) -> str:
    rows, facts = request.rows_of_a_step, request.facts
    memory = 4 * facts["parameters"] + 12 * facts["trains"]  # weights; gradients and two moments of AdamW
    cost = f"at most {request.steps} steps of {rows} rows, {memory / 2**30:.1f} GiB beside activations"
    if (timed := facts.get("timing")) is None:
        return cost
    data = request.audit_data()
    audit = plan_of(request.depth, data, bool(data.never_seen), facts["parameters"], request.options.seed)
    seconds = {
        "to train": request.steps * rows * _BACKWARD * _WATCHING * timed["pass"],
        "to audit": 2 * seconds_of(cost_of(audit, data), audit.rows, timed),
    }
    if request.auto:
        own = OwnAnswers(request.questions)
        answer = timed["generation"] * own.max_new_tokens / audit.scorer.max_new_tokens
        seconds = {"to write the rows to keep": len(own.asked()) * answer, **seconds}
    return f"{cost}; on this CPU at most about {_times(seconds, timed['busy'])}"


def _times(seconds: Mapping[str, float], busy: float) -> str:
    """What takes how long; on a CPU that others use too, also if it becomes free."""
    told = _and([f"{_minutes(value)} {name}" for name, value in seconds.items()])
    if busy < _BUSY:
        return told
    free = _and([_minutes(value / busy) for value in seconds.values()])
    return f"{told} if it stays as busy as it is now, {free} if it becomes free"


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _notes(request: LanguageRequest) -> list[str]:
    notes = []
    if "never_seen" not in request.tables:
        notes.append(
            "There are no rows that the model has never seen (--never_seen), so the audit has no control: it says "
            "less, and can't say that the rows are as if never learned."
        )
    if request.auto:
        notes.append(
            "There are no rows to keep (--retain). The model keeps its own answers to neutral questions. They protect "
            "nothing of the same form as the rows to forget: where such rows must stay, give some of them. The answers "
            "stay in private/ of the output folder, and are text of the original model: hand out model/ alone."
        )
    if not request.stops:
        notes.append(f"{request.name} {request.objective.not_averaged}, so the run is not ended early.")
    if Path(request.model).suffix.lower() == ".gguf":
        notes.append("The model is a quantized GGUF file. A folder of transformers in 32 bits is written.")
    elif (Path(request.model) / "adapter_config.json").is_file():
        notes.append("The model is an adapter. It is merged into its base, and the merged model is written.")
    forget = request.audit_data().forget
    several = sum(any(part.get("role") == "assistant" for part in _messages(probe.question)) for probe in forget)
    if several:
        notes.append(
            f"{several} rows to forget are conversations with several answers. The last answer of each is forgotten "
            "and asked for; the ones before it stay. Give a row of its own, which ends with it, for each that must go."
        )
    if len(with_phrasings(forget)) < MIN_PROBES:
        more = (
            "" if any(probe.is_text for probe in forget) else ", which paraphrases (paraphrased_question) can make up"
        )
        notes.append(f"{len(forget)} rows are few: a verdict wants {MIN_PROBES} questions{more}.")
    return notes


def _messages(question: str | Messages) -> Messages:
    return [] if isinstance(question, str) else question


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
