"""Measurements of one model in an audit, as JSON values."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.audit.data import AuditData
from lightning_unlearn.functional.language.extraction import (
    answer_probability,
    exact_memorization,
    extraction_strength,
)
from lightning_unlearn.functional.language.membership import loss_score, min_k, min_k_plus_plus, zlib_score
from lightning_unlearn.functional.language.truth_ratio import truth_ratio
from lightning_unlearn.language.attacks.activation_noise import ActivationNoise
from lightning_unlearn.language.attacks.attack import LanguageAttack
from lightning_unlearn.language.attacks.relearning import LanguageRelearning
from lightning_unlearn.language.attacks.sampling import Samples
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.knowledge import Knowledge
from lightning_unlearn.language.metrics.quality import refusal, repetition
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.scorer import AnswersOnly, KnowledgeScorer
from lightning_unlearn.language.token_stats import TokenStats, token_stats

__all__ = ["JSON", "attacked", "rows_measured", "timing"]

JSON = dict[str, Any]

_TIMED, _TOKENS = 4, 8  # rows, and tokens of each answer, that say how long all take
_CALLS, _PATIENCE = 3, 1.0  # calls of which the fastest counts, and seconds after which there is none more
_REPEATED = 0.5
"""Share of repeated 4-grams from which on an answer counts as repeated."""


def rows_measured(module: LitCausalLM, data: AuditData, probes: Sequence[Probe], scorer: KnowledgeScorer) -> JSON:
    """Likelihoods and answers of every set, one number a row: one forward pass and one answer each.

    Args:
        module: The model.
        data: The sets.
        probes: Questions to the forget rows, with other phrasings of them where there are few.
        scorer: Marks answers.

    Returns:
        By set, lists of ``strength``, ``matched``, ``probability`` and so on; ``perplexity`` of the neutral texts.
    """
    sets = {**data.sets(), "forget": list(probes)}
    asked = [probe for rows in sets.values() for probe in rows]
    stats = token_stats(module, asked, ("answer", "paraphrased", "perturbed"))
    groups = _by_probe(stats, len(asked))
    answers = scorer.answers(module, asked)
    found: JSON = {}
    start = 0
    for name, rows in sets.items():
        part = slice(start, start + len(rows))
        found[name] = _set_measured(rows, groups[part], answers[part], scorer)
        start += len(rows)
    return {"sets": found, "perplexity": _perplexity(module, data.neutral)}


def attacked(
    module: LitCausalLM,
    attack: LanguageAttack,
    probes: Sequence[Probe],
    never_seen: Sequence[Probe],
    scorer: KnowledgeScorer,
    plain: JSON | None = None,
) -> JSON:
    """What an attacked model knows of the forget rows, and of rows that it has never seen.

    Args:
        module: The model.
        attack: The attack.
        probes: Questions to the forget rows.
        never_seen: Rows like them that no model was trained on; they are attacked alike, and never taught.
        scorer: Measures a changed model.
        plain: What `rows_measured` found of the model itself, which relearning begins with.

    Returns:
        ``rows``, the places of the forget probes that were scored; their ``strength`` and ``matched``, those of the
        never-seen rows under ``never_seen``; and what the attack says beside, under ``details``.
    """
    asked = [*probes, *never_seen]
    details: JSON = {}
    if isinstance(attack, LanguageRelearning):
        start = _strengths(module, plain, probes, never_seen) if plain is not None else None
        trace = attack.trace(module, asked, _CurveScorer(scorer, len(attack.measured), start))
        kept, knowledge = attack.held_out(asked), trace.knowledge[-1]
        count = len([probe for probe in kept if probe.row < len(probes)])
        details = {
            "steps": trace.steps,
            "strength": [float(_tensor(k.strength)[:count].mean()) for k in trace.knowledge],
            "never_seen": [_mean(_tensor(k.strength)[count:]) for k in trace.knowledge],
            "taught_loss": trace.taught_loss,
            "taught_tokens": trace.tokens,
        }
    else:
        # Noise shows in what is answered: likelihoods under each draw would double the cost.
        judge = AnswersOnly(scorer) if isinstance(attack, ActivationNoise) else scorer
        kept, knowledge = asked, attack.knowledge(module, asked, judge)
        count = len(probes)
        if isinstance(knowledge, Samples) and knowledge.upper is not None:
            details = {"upper": _mean(knowledge.upper[:count]), "k": knowledge.k}
    return {
        "rows": [probe.row for probe in kept[:count]],
        **_halves(knowledge, 0, count),
        "never_seen": _halves(knowledge, count, len(kept)) if never_seen else None,
        "details": details,
    }


def timing(module: LitCausalLM, probes: Sequence[Probe], scorer: KnowledgeScorer) -> dict[str, float]:
    """Estimated seconds of a forward pass and of an answer, a row.

    A few rows are read, and answered with a few tokens. Full answers in full batches are extrapolated from that: a step
    of generation takes a constant time and one for each row.

    Args:
        module: The model, on its device.
        probes: The questions.
        scorer: Says how long answers are, and how many are generated together.

    Returns:
        ``pass`` and ``generation``, in seconds, as busy as the machine is; and ``busy``, how many times as long that is
        as on a CPU that does nothing else (1 on other devices).
    """
    few = list(probes[:_TIMED])
    short = KnowledgeScorer(scorer.strength, scorer.match, _TOKENS, scorer.batch_size, scorer.max_tokens)
    scorer.strengths(module, few[:1])  # the first call prepares what later ones reuse
    read = _fastest(lambda: scorer.strengths(module, few[:2]))
    one, several = (_fastest(partial(short.answers, module, rows)) for rows in (few[:1], few))
    reading = read.seconds / len(few[:2])
    steps = [_step(took.seconds, count * reading) for took, count in ((one, 1), (several, len(few)))]
    per_row = max(0.0, steps[1] - steps[0]) / (len(few) - 1) if len(few) > 1 else 0.0
    together = min(scorer.batch_size, len(probes))
    step = (steps[0] - per_row) / together + per_row
    busy = 1.0
    if module.device.type == "cpu":
        times = (read, one, several)
        busy = max(1.0, sum(took.seconds for took in times) / max(sum(took.computed for took in times), 1e-9))
    return {"pass": reading, "generation": reading + scorer.max_new_tokens * step, "busy": busy}


class _Time(NamedTuple):
    seconds: float
    computed: float  # seconds in which this thread had a core


def _fastest(run: Callable[[], object]) -> _Time:
    """Time of the fastest of three calls; of fewer, where these take long."""
    times: list[_Time] = []
    while len(times) < _CALLS and sum(took.seconds for took in times) < _PATIENCE:
        start = time.perf_counter(), time.thread_time()
        run()
        times.append(_Time(time.perf_counter() - start[0], time.thread_time() - start[1]))
    return _Time(min(took.seconds for took in times), min(took.computed for took in times))


def _step(seconds: float, reading: float) -> float:
    """Seconds for one more token, of a short answer that begins with reading its question."""
    return max(seconds - reading, seconds / 2) / _TOKENS


def half_precision(module: LitCausalLM, precision: str) -> Any:
    """A context for computing in bf16, also with fp32 weights; casts of these are not kept, since attacks change them.

    Args:
        module: The model.
        precision: ``"bf16"``, or ``"32"`` for no such context.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(module.device.type, dtype=torch.bfloat16, cache_enabled=False)


class _CurveScorer:
    """Scorer of a relearning curve: answers are generated after the last update alone, between are likelihoods.

    Args:
        scorer: Measures a model.
        calls: Number of measurements.
        start: Strength by row before the first update, where it is known.
    """

    def __init__(self, scorer: KnowledgeScorer, calls: int, start: Mapping[int, float] | None) -> None:
        self.scorer, self.left, self.start = scorer, calls, start

    def __call__(self, module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
        self.left -= 1
        start, self.start = self.start, None
        if self.left <= 0:
            return self.scorer(module, probes)
        if start is not None:
            return Knowledge(torch.tensor([start[probe.row] for probe in probes]), None)
        return Knowledge(self.scorer.strengths(module, probes), None)


def _strengths(
    module: LitCausalLM, plain: JSON, probes: Sequence[Probe], never_seen: Sequence[Probe]
) -> dict[int, float] | None:
    """Strength by row of a model without an attack; ``None`` where an fp32 copy of it is another model."""
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return None
    found = {"forget": probes, "never_seen": never_seen}
    return {
        probe.row: strength
        for name, rows in found.items()
        if rows
        for probe, strength in zip(rows, plain["sets"][name]["strength"], strict=True)
    }


def _by_probe(stats: Sequence[TokenStats], count: int) -> list[list[TokenStats]]:
    """The records of each probe, which begin with that of its answer."""
    groups: list[list[TokenStats]] = []
    for part in stats:
        if part.kind == "answer":
            groups.append([])
        groups[-1].append(part)
    if len(groups) != count:
        raise ValueError(
            f"{count - len(groups)} of {count} rows have no answer token to score: nothing predicts a first token. "
            "Give answers of two tokens or more, or remove these rows."
        )
    return groups


def _set_measured(
    probes: Sequence[Probe], groups: Sequence[list[TokenStats]], answers: Sequence[str], scorer: KnowledgeScorer
) -> JSON:
    own = [group[0] for group in groups]
    ends = [part.ended and len(part) > 1 for part in own]  # the last token ends the answer, and is no part of it
    found: JSON = {
        "strength": [float(extraction_strength(part.hit, drop_last=end)) for part, end in zip(own, ends, strict=True)],
        "matched": [scorer.marked(probe, text) for probe, text in zip(probes, answers, strict=True)],
        "probability": [float(answer_probability(part.log_prob)) for part in own],
        "exact_memorization": [float(exact_memorization(p.hit, drop_last=e)) for p, e in zip(own, ends, strict=True)],
        "loss": [float(loss_score(part.log_prob)) for part in own],
        "zlib": [float(zlib_score(part.log_prob, part.zlib_length)) for part in own],
        "min_k": [float(min_k(part.log_prob)) for part in own],
        "min_k_plus_plus": [float(min_k_plus_plus(part.log_prob, part.mean, part.variance)) for part in own],
        "empty": [float(not text.strip()) for text in answers],
        "repeated": (repetition(answers) >= _REPEATED).double().tolist(),
        "refusal": refusal(answers).tolist(),
        "words": [float(len(text.split())) for text in answers],
        "answers": list(answers),
    }
    if all(probe.perturbed_answers for probe in probes):
        found["truth_ratio"] = _truth_ratios(groups)
    return found


def _truth_ratios(groups: Sequence[list[TokenStats]]) -> list[float]:
    right, wrong = [], []
    for group in groups:
        means = {
            kind: [float(part.log_prob.mean()) for part in group if part.kind == kind]
            for kind in ("paraphrased", "answer", "perturbed")
        }
        right.append((means["paraphrased"] or means["answer"])[0])
        wrong.append(means["perturbed"])
    return truth_ratio(torch.tensor(right), torch.tensor(wrong)).tolist()


def _perplexity(module: LitCausalLM, texts: Sequence[str]) -> float | None:
    """Perplexity of the tokens of all texts together."""
    if not texts:
        return None
    ids = module.tokenizer(list(texts), verbose=False)["input_ids"]
    stats = token_stats(module, [([], tokens) for tokens in ids if len(tokens) > 1])
    return math.exp(-float(torch.cat([part.log_prob for part in stats]).double().mean()))


def _halves(knowledge: Knowledge, start: int, end: int) -> JSON:
    scores = {"strength": knowledge.strength, "matched": knowledge.matched}
    return {name: None if values is None else values[start:end].tolist() for name, values in scores.items()}


def _tensor(values: Tensor | None) -> Tensor:
    assert values is not None
    return values


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
