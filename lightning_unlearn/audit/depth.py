"""Depths of an audit: which attacks each runs, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, get_args

from lightning_unlearn.audit.data import AuditData, with_phrasings
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.language.attacks.activation_noise import ActivationNoise
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.attacks.few_shot import FewShotAttack, InContextAttack
from lightning_unlearn.language.attacks.gcg import GCG
from lightning_unlearn.language.attacks.paraphrase import ParaphraseAttack
from lightning_unlearn.language.attacks.prompts import JailbreakAttack, MultiTurnAttack, PrefixAttack
from lightning_unlearn.language.attacks.pruning import PruningAttack
from lightning_unlearn.language.attacks.quantization import QuantizationAttack
from lightning_unlearn.language.attacks.relearning import LanguageRelearning
from lightning_unlearn.language.attacks.relearning_recipes import RELEARNING_RECIPES
from lightning_unlearn.language.attacks.sampling import SamplingAttack
from lightning_unlearn.language.attacks.taught_rows import RelearningRows
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.scorer import KnowledgeScorer

__all__ = ["DEPTHS", "Depth", "Plan", "cost_of", "plan_of"]

Depth: TypeAlias = Literal["quick", "default", "full"]
DEPTHS: tuple[Depth, ...] = get_args(Depth)

_SMALL = 1_000_000_000  # parameters below which the larger learning rate is tried
_SHORT = replace(RELEARNING_RECIPES["default"], steps=(0, 5, 10, 20))  # the same updates, measured less often
_SAMPLES = 128  # together
_CHARACTERS = 3  # of a token, at least, in a text of letters
_SCHEMES = {
    "quick": ("int8", "int4", "nf4"),
    "default": ("int8", "int4", "nf4"),
    "full": ("int8", "int4", "int4_row", "nf4", "int4_g128", "int4_g32", "int4_asym", "fp4"),
}


@dataclass(frozen=True)
class Plan:
    """What an audit asks of each model, the same of all.

    Args:
        depth: The depth.
        probes: Questions to the forget rows, with other phrasings of them where there are few; numbered from 0.
        never_seen: Questions to rows that no model has seen, numbered after them.
        scorer: Marks answers.
        attacks: The attacks.
        not_run: Gates and other attacks that are not run, and why.
    """

    depth: Depth
    probes: list[Probe]
    never_seen: list[Probe]
    scorer: KnowledgeScorer
    attacks: list[LanguageAttack] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Questions that every attack asks."""
        return len(self.probes) + len(self.never_seen)


def plan_of(depth: Depth, data: AuditData, matched: bool, parameters: int, seed: int = 0) -> Plan:
    """The attacks of a depth on some data.

    Args:
        depth: ``"quick"``: plain and paraphrased questions, weights rounded to 8 and 4 bits. ``"default"``: also
            relearning on some of the forget rows and on others (20 updates), 16 samples of each answer, and activation
            noise in four layers. ``"full"``: more settings and draws of each, pruning, prefixes, examples in the
            prompt, jailbreaks and several turns.
        data: The rows.
        matched: Whether never-seen rows stand in for a control model, and are attacked as well.
        parameters: Number of parameters of the models; small ones are attacked at a larger learning rate.
        seed: Seed of all draws.

    Raises:
        ValueError: If there is no such depth.
    """
    one_of("depth", depth, Depth)
    probes = [replace(probe, row=number) for number, probe in enumerate(with_phrasings(data.forget))]
    phrasings = max(len(probe.paraphrased_questions) for probe in probes)  # an attack takes the best of as many
    never_seen = [
        replace(probe, row=len(probes) + number, paraphrased_questions=probe.paraphrased_questions[:phrasings])
        for number, probe in enumerate(data.never_seen if matched else [])
    ]
    plan = Plan(
        depth,
        probes,
        never_seen,
        KnowledgeScorer(max_new_tokens=longest_answer(data)),
    )
    _prompts(plan, data, seed)
    plan.attacks.extend(QuantizationAttack(scheme) for scheme in _SCHEMES[depth])
    if depth == "quick":
        later = ("relearning", "relearning_out_of_domain", "sampling", "activation_noise")
        plan.not_run.update({name: "not part of the depth quick" for name in later})
        return plan
    _relearning(plan, data, parameters, seed)
    _answers(plan, seed)
    if depth == "full":
        plan.attacks.extend(PruningAttack(share) for share in (0.1, 0.3))
    return plan


def cost_of(plan: Plan, data: AuditData) -> Cost:
    """What a plan costs on one model: passes over and answers to its questions, and optimizer updates."""
    base = sum(map(len, data.sets().values())) + len(plan.probes) - len(data.forget)
    costs = [Cost(base / plan.rows, base / plan.rows)]
    for attack in plan.attacks:
        cost = attack.cost(plan.rows)
        if isinstance(attack, LanguageRelearning):  # its curve is drawn too
            cost = cost._replace(passes=len(attack.measured))
        elif isinstance(attack, ActivationNoise):  # read by its answers
            cost = cost._replace(passes=0)
        costs.append(cost)
    passes, generations, steps = zip(*costs, strict=True)
    return Cost(sum(passes), sum(generations), sum(steps))


def seconds_of(cost: Cost, rows: int, timing: Mapping[str, float]) -> float:
    """Estimated seconds on one model.

    Args:
        cost: Its cost.
        rows: Questions.
        timing: Seconds of a ``pass`` and of a ``generation`` a row.
    """
    step = 4 * 3 * timing["pass"]  # four rows, forward and backward
    return rows * (cost.passes * timing["pass"] + cost.generations * timing["generation"]) + cost.steps * step


def longest_answer(data: AuditData) -> int:
    """New tokens that an answer needs, by the longest one of the rows that are asked; at least 24 and at most 200."""
    longest = max(len(probe.answer) for rows in data.sets().values() for probe in rows)
    return min(200, max(24, longest // _CHARACTERS + 8))


def _prompts(plan: Plan, data: AuditData, seed: int) -> None:
    """Other wordings and prompts."""
    if any(probe.is_text for probe in [*plan.probes, *plan.never_seen]):
        for name in ("paraphrase", "sampling", "prompts"):
            plan.not_run[name] = "the rows are plain texts, which are continued and not asked for"
        return
    missing = sum(not probe.paraphrased_questions for probe in plan.probes)
    if missing:
        plan.not_run["paraphrase"] = (
            f"{missing} of {len(plan.probes)} questions have no paraphrase (left): give paraphrased_question"
        )
    else:
        plan.attacks.append(ParaphraseAttack())
    if plan.depth != "full":
        plan.not_run["prompts"] = f"not part of the depth {plan.depth}"
        return
    plan.attacks.extend([PrefixAttack(), JailbreakAttack(), MultiTurnAttack(), GCG(seed=seed)])
    shots = [probe for probe in data.retain if not probe.is_text]
    if len(shots) >= 4:
        plan.attacks.append(FewShotAttack(shots, seed=seed))
    if len({probe.entity for probe in data.forget}) < len(data.forget) and data.clustered:
        plan.attacks.append(InContextAttack())


def _relearning(plan: Plan, data: AuditData, parameters: int, seed: int) -> None:
    """Fine-tuning on some forget rows, on rows of their form, and on plain text."""
    rates = (1e-5, 5e-5) if parameters < _SMALL else (1e-5,)
    rates = rates if plan.depth == "full" else rates[-1:]
    recipe = RELEARNING_RECIPES["full"] if plan.depth == "full" else _SHORT
    taught: dict[str, list[Probe]] = {}
    try:
        taught["in_domain"] = RelearningRows.split(plan.probes, seed=seed).taught
    except ValueError as error:
        plan.not_run["relearning"] = str(error)
    form = [probe for name, rows in data.further.items() if name.startswith("heldout") for probe in rows]
    far = [_text(number, text) for number, text in enumerate(data.neutral)]
    for kind, rows in (("form", form), ("far", far)):
        if rows:
            taught[kind] = [replace(probe, row=number) for number, probe in enumerate(rows)]
    if not form and not far:
        plan.not_run["relearning_out_of_domain"] = "needs rows of other subjects (heldout) or texts (neutral)"
    for kind, rows in taught.items():
        for lr in rates:
            plan.attacks.append(LanguageRelearning(rows, kind, replace(recipe, lr=lr), seed=seed))  # type: ignore[arg-type]


def _answers(plan: Plan, seed: int) -> None:
    """Many answers: samples at temperature 1, and greedy ones under noise."""
    full = plan.depth == "full"
    if "sampling" not in plan.not_run:
        tokens = plan.scorer.max_new_tokens
        n, k = (128, 64) if full else (16, 8)
        plan.attacks.append(SamplingAttack(n=n, k=k, max_new_tokens=tokens, seed=seed, batch_size=_SAMPLES))
        # Of the default, one draw in each of eight cells.
        noise = ActivationNoise("full", seed=seed) if full else ActivationNoise("default", draws=1, k=8, seed=seed)
        plan.attacks.append(noise)
    else:
        plan.not_run["activation_noise"] = plan.not_run["sampling"]


def _text(number: int, text: str) -> Probe:
    words = text.split(" ")
    return Probe(number, " ".join(words[:1]), " ".join(words[1:]), is_text=True)
