"""Running of an audit: every part on every model, one model in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import torch

from lightning_unlearn.audit.data import AuditData
from lightning_unlearn.audit.depth import DEPTHS, Depth, Plan, cost_of, longest_answer, plan_of, seconds_of
from lightning_unlearn.audit.measures import JSON, attacked, half_precision, rows_measured, timing
from lightning_unlearn.audit.models import AuditedModel, check_tokenizers, common_prompt, tokenizer_facts
from lightning_unlearn.audit.parts import PartKey, Parts, code_hash
from lightning_unlearn.core.progress import progress
from lightning_unlearn.language.attacks.attack import LanguageAttack
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.scorer import KnowledgeScorer

__all__ = ["ROWS", "Collected", "Collector", "Conditions"]

Say: TypeAlias = Callable[[str], None]

ROWS = "rows"
"""Name of the part that measures every set without an attack."""


@dataclass(frozen=True)
class Conditions:
    """Under what conditions all models are measured.

    Args:
        depth: How much is tried.
        matched: Whether never-seen rows stand in for a control model.
        seed: Seed of all draws.
        precision: ``"32"``, or ``"bf16"`` for forward passes in half precision.
        device: Where the models run.
        show_text: Whether answers to forget rows are kept in the parts.
    """

    depth: Depth
    matched: bool
    seed: int
    precision: str
    device: torch.device
    show_text: bool


@dataclass(frozen=True)
class Collected:
    """What was measured.

    Args:
        plan: What was asked.
        outcomes: By role of the model, the outcome of each part.
        facts: By role of the model, its tokenizer and size.
        prompt: The prompt format that all were asked in.
    """

    plan: Plan
    outcomes: dict[str, dict[str, JSON]] = field(default_factory=dict)
    facts: dict[str, JSON] = field(default_factory=dict)
    prompt: PromptFormat | None = None


class Task(NamedTuple):
    """One part of the audit of a model.

    Args:
        name: Its name.
        settings: All that its outcome depends on beside model, rows and code.
        classes: Classes whose source code it uses.
        run: Measures a model; it is also given the outcome of the part `ROWS`, but for that part itself.
    """

    name: str
    settings: dict[str, Any]
    classes: tuple[type, ...]
    run: Callable[[LitCausalLM, JSON | None], JSON]


class Collector:
    """Runs every part that has no outcome yet, on one model after the other.

    Args:
        models: The original first.
        data: The rows.
        conditions: How they are measured.
        parts: Finished parts.
        say: Prints a line.

    Raises:
        ValueError: If the prompt formats of the models differ, or the tokenizers that can be read without the weights.
    """

    def __init__(
        self, models: Sequence[AuditedModel], data: AuditData, conditions: Conditions, parts: Parts, say: Say = print
    ) -> None:
        self.models, self.data, self.conditions, self.parts, self.say = models, data, conditions, parts, say
        self.prompt = common_prompt(list(models))
        early = {model.role: tokenizer for model in models if (tokenizer := model.tokenizer()) is not None}
        check_tokenizers({role: tokenizer_facts(tokenizer) for role, tokenizer in early.items()})
        self.dated = not early or any(_writes_date(self.prompt, tokenizer) for tokenizer in early.values())
        self.rows = data.fingerprint(parts.secret)
        self.facts: dict[str, JSON] = {}
        self.plan: Plan | None = None
        self._announced = False

    def collect(self) -> Collected:
        """Measure all models.

        Raises:
            ValueError: If the tokenizers of the models differ.
        """
        outcomes: dict[str, dict[str, JSON]] = {}
        for model in self.models:
            known = self.parts.get(self._facts_key(model))
            if known is not None:
                self._note(model, known)
            if known is None or self._missing(model):
                with model.opened(self.conditions.device, self.prompt) as module:
                    if known is None:
                        self._note(model, self._measured_facts(module))
                        self.parts.put(self._facts_key(model), self.facts[model.role])
                    self._run(model, module)
            found = {task.name: self.parts.get(self._key(model, task)) for task in self._tasks()}
            outcomes[model.role] = found
        assert self.plan is not None
        return Collected(self.plan, outcomes, self.facts, self.prompt)

    def _run(self, model: AuditedModel, module: LitCausalLM) -> None:
        missing = self._missing(model)
        if not self._announced:
            self._announce(model, len(missing))
        for task in progress(missing, f"Audit of the {model.role} model"):
            start = time.perf_counter()
            outcome = task.run(module, self.parts.get(self._key(model, self._tasks()[0])))
            self.parts.put(self._key(model, task), {"seconds": time.perf_counter() - start, **outcome})

    def _tasks(self) -> list[Task]:
        """The parts of the audit of one model."""
        assert self.plan is not None
        plan, data, precision = self.plan, self.data, self.conditions.precision
        common = {"precision": precision, "prompt": self._prompt_state(), "scorer": plan.scorer.settings()}

        def base(module: LitCausalLM, _: JSON | None) -> JSON:
            with half_precision(module, precision):
                return self._shown(rows_measured(module, data, plan.probes, plan.scorer))

        def under(attack: LanguageAttack) -> Callable[[LitCausalLM, JSON | None], JSON]:
            def run(module: LitCausalLM, plain: JSON | None) -> JSON:
                with half_precision(module, precision):
                    return attacked(module, attack, plan.probes, plan.never_seen, plan.scorer, plain)

            return run

        tasks = [Task(ROWS, {**common, "show_text": self.conditions.show_text}, (KnowledgeScorer,), base)]
        for attack in plan.attacks:
            settings = {**common, "matched": self.conditions.matched, **attack.settings()}
            tasks.append(Task(attack.name, settings, (type(attack), KnowledgeScorer), under(attack)))
        return tasks

    def _shown(self, measured: JSON) -> JSON:
        """The measurements without the answers to rows that are to be forgotten, unless they may be shown."""
        if not self.conditions.show_text:
            measured["sets"]["forget"]["answers"] = None
        return measured

    def _missing(self, model: AuditedModel) -> list[Task]:
        return [task for task in self._tasks() if self.parts.get(self._key(model, task)) is None]

    def _key(self, model: AuditedModel, task: Task) -> PartKey:
        function = rows_measured if task.name == ROWS else attacked
        return PartKey(model.identity, self.rows, task.name, task.settings, code_hash(function, task.classes))

    def _facts_key(self, model: AuditedModel) -> PartKey:
        settings = {"precision": self.conditions.precision}
        return PartKey(model.identity, self.rows, "facts", settings, code_hash(tokenizer_facts, ()))

    def _prompt_state(self) -> JSON | None:
        """The prompt format; its date only where it is written, as the runs of two models are often of two days."""
        if self.prompt is None:
            return None
        return self.prompt.state_dict() | ({} if self.dated else {"date": None})

    def _measured_facts(self, module: LitCausalLM) -> JSON:
        seconds = None
        if self.plan is None:  # the first model's seconds are told before the first part
            scorer = KnowledgeScorer(max_new_tokens=longest_answer(self.data))
            with half_precision(module, self.conditions.precision):
                seconds = timing(module, self.data.forget, scorer)
        count = sum(parameter.numel() for parameter in module.model.parameters())
        return {"tokenizer": tokenizer_facts(module.tokenizer), "parameters": count, "timing": seconds}

    def _note(self, model: AuditedModel, facts: JSON) -> None:
        self.facts[model.role] = facts
        check_tokenizers({role: known["tokenizer"] for role, known in self.facts.items()})
        if self.plan is None:
            self.plan = self._plan(self.conditions.depth)

    def _plan(self, depth: Depth) -> Plan:
        (facts,) = list(self.facts.values())[:1]
        return plan_of(depth, self.data, self.conditions.matched, facts["parameters"], self.conditions.seed)

    def _announce(self, model: AuditedModel, missing: int) -> None:
        """Say what each depth costs, before the first part is run."""
        self._announced = True
        assert self.plan is not None
        total, timed = len(self._tasks()), next(iter(self.facts.values()))["timing"]
        self.say(
            f"Audit of {len(self.models)} models with {len(self.plan.probes)} questions about the forget rows"
            + (f" and {len(self.plan.never_seen)} about never-seen rows" if self.plan.never_seen else "")
            + f"; {total - missing} of {total} parts of the {model.role} model are done already."
        )
        self.say(f"{'depth':<9}{'passes':>8}{'answers':>9}{'steps':>7}  seconds (estimate for all models)")
        for depth in DEPTHS:
            plan = self._plan(depth)
            cost = cost_of(plan, self.data)
            seconds = len(self.models) * seconds_of(cost, plan.rows, timed)
            mark = "  <- this one" if depth == self.conditions.depth else ""
            self.say(f"{depth:<9}{cost.passes:>8.0f}{cost.generations:>9.0f}{cost.steps:>7}  about {seconds:.0f}{mark}")


def _writes_date(prompt: PromptFormat | None, tokenizer: Any) -> bool:
    """Whether the day is part of what is asked."""
    return prompt is not None and replace(prompt, tokenizer=tokenizer).writes_date
