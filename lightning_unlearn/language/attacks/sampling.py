"""Sampling attack: many answers at temperature 1, one of which may leak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_unlearn.core.checks import above, at_least, between, one_of
from lightning_unlearn.core.lightning import isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.functional.language.leak import clopper_pearson_upper, expected_best_of_k, mean_upper_bound
from lightning_unlearn.functional.random import keyed_seed, mixed_bits
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.attacks.attempts import refuse_texts
from lightning_unlearn.language.attacks.replicas import over_replicas
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.generation import generate_all
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.matching import Match, matcher
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.scorer import KnowledgeScorer

__all__ = ["AnswerJudge", "Samples", "SamplingAttack"]

AnswerJudge: TypeAlias = Callable[[Sequence[Probe], Sequence[str]], Sequence[float]]
"""``(probes, answers) -> scores in [0, 1]``, one each: how far an answer gives away what its probe asks for."""

_STREAM = 16  # what the random numbers are for
_BLOCK = 256  # tokens


@dataclass(frozen=True)
class Samples(Knowledge):
    """Knowledge from samples: ``matched`` is leak@k, or the expected best score of k samples.

    Args:
        scores: Score of each sample, shape ``(N, n)``: 1 where it leaks, 0 where not, or that of a judge.
        upper: Upper confidence bound over samples of the mean score of each row, shape ``(N,)``; by Clopper and Pearson
            where all scores are 0 or 1, else by DKW. It is of this decoder alone, and not over rows.
        k: Samples that an attacker draws.
    """

    scores: Tensor | None = None
    upper: Tensor | None = None
    k: int = 0


class SamplingAttack(LanguageAttack):
    r"""Draws n answers to each question, and estimates the probability that at least one of k answers leaks.

    $$\mathrm{leak@}k = 1 - \binom{n - c}{k} \Big/ \binom{n}{k}$$

    for c samples that leak. The random numbers are a hash of (seed, row, sample, token), so a sample does not depend on
    the batch, on the other rows or on the number of processes. A control model also leaks if an answer can be guessed,
    so only the comparison is meaningful.

    Args:
        n: Samples of a question; 128 for a full audit.
        k: Samples that an attacker draws; 64 for a full audit.
        judge: How far a sample leaks. By default as the scorer marks its own answers, where that is a
            [`KnowledgeScorer`][lightning_unlearn.KnowledgeScorer]. ``"words"``: it leaks if it contains an accepted
            answer as whole words; ``"exact"``: if it is one; or a function ``(probes, answers) -> scores``.
        max_new_tokens: Longest answer in tokens.
        temperature: Divides the logits.
        top_p: Share of the probability that is drawn from, the likeliest tokens. Below 1, as with another temperature
            than 1, bounds are of that decoder alone.
        alpha: One minus the level of the bound of each row.
        seed: Seed of the samples.
        batch_size: Samples generated together.

    Raises:
        ValueError: If a number is out of range, or the rows are plain texts.

    References:
        Reisizadeh et al., *Leak@k: Unlearning Does Not Make LLMs Forget Under Probabilistic Decoding*,
        arXiv:2511.04934.
        Scholten et al., *A Probabilistic Perspective on Unlearning and Alignment for Large Language Models*,
        arXiv:2410.03523.
    """

    name = "samples"
    gate = "sampling"

    def __init__(
        self,
        n: int = 32,
        k: int = 16,
        judge: Match | AnswerJudge | None = None,
        max_new_tokens: int = 48,
        temperature: float = 1.0,
        top_p: float = 1.0,
        alpha: float = 0.05,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        self.n, self.k = at_least("n", n, 1), at_least("k", k, 1)
        if k > n:
            raise ValueError(f"leak@k needs at least k samples of a question, but got n={n} and k={k}.")
        self.judge = judge if judge is None or callable(judge) else one_of("judge", judge, Match)
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)
        self.temperature, self.top_p = above("temperature", temperature, 0), between("top_p", top_p, 1e-9, 1)
        self.alpha, self.seed = between("alpha", alpha, 1e-12, 0.5), seed
        self.batch_size = at_least("batch_size", batch_size, 1)

    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer | None = None) -> Samples:
        """Sample answers and mark them. Of the scorer, whose own answers are greedy, only the marking is used.

        Raises:
            ValueError: If the rows are plain texts, or a judge gives other than one score in [0, 1] an answer.
        """
        refuse_texts(self.name, probes)
        answers = over_replicas(module, probes, lambda part: self.samples(module, part))
        scores = self._scores(probes, answers, scorer)
        binary = bool(((scores == 0) | (scores == 1)).all())
        upper = (
            clopper_pearson_upper(scores.sum(1), self.n, self.alpha) if binary else mean_upper_bound(scores, self.alpha)
        )
        matched = expected_best_of_k(scores, self.k).float()
        return Samples(None, matched, answers, scores, upper.float(), self.k)

    @torch.no_grad()
    def samples(self, module: LitCausalLM, probes: Sequence[Probe]) -> list[list[str]]:
        """Answers to each question, ``n`` of them.

        Args:
            module: The model.
            probes: The questions; each process of several draws those that it is given.
        """
        prompt_format = module._prompt_format()
        prompts = prompt_format.prompts([probe.question for probe in probes])
        keys = [keyed_seed(_STREAM, self.seed, probe.row, sample) for probe in probes for sample in range(self.n)]
        draw = _KeyedDraw(keys, self.temperature, self.top_p)
        with isolate_rng(), evaluating(module):
            texts = generate_all(
                module.model, prompt_format, prompts, self.max_new_tokens, self.batch_size, draw, self.n
            )
        return [texts[first : first + self.n] for first in range(0, len(texts), self.n)]

    def cost(self, rows: int) -> Cost:
        """As many generations a row as samples."""
        return Cost(generations=self.n)

    def settings(self) -> dict[str, Any]:
        """All but the size of a batch."""
        names = ("n", "k", "max_new_tokens", "temperature", "top_p", "alpha", "seed")
        judge: Any = self.judge or "scorer"
        judge = judge if isinstance(judge, str) else getattr(judge, "__name__", type(judge).__name__)
        return {"judge": judge} | {name: getattr(self, name) for name in names}

    def _scores(self, probes: Sequence[Probe], answers: Sequence[Sequence[str]], scorer: Scorer | None) -> Tensor:
        owners = [probe for probe in probes for _ in range(self.n)]
        texts = [text for row in answers for text in row]
        found: Sequence[float]
        if self.judge is None and isinstance(scorer, KnowledgeScorer):
            found = [scorer.marked(probe, text) for probe, text in zip(owners, texts, strict=True)]
        elif self.judge is None or isinstance(self.judge, str):
            matches = matcher(self.judge or "words")
            found = [
                float(any(matches(text, accepted) for accepted in probe.accepted))
                for probe, text in zip(owners, texts, strict=True)
            ]
        else:
            found = self.judge(owners, texts)
        scores = torch.as_tensor(found, dtype=torch.float32).cpu()
        if scores.shape != (len(texts),) or not bool(((scores >= 0) & (scores <= 1)).all()):
            raise ValueError(
                f"judge must give one score in [0, 1] for each of {len(texts)} answers, but gave {tuple(scores.shape)} "
                "scores" + (f" from {scores.min():.4g} to {scores.max():.4g}." if scores.numel() else ".")
            )
        return scores.view(len(probes), self.n)


class _KeyedDraw:
    """Draws the next token of each row by a random number keyed to the row, so that rows share no generator."""

    def __init__(self, keys: Sequence[int], temperature: float, top_p: float) -> None:
        self.keys, self.temperature, self.top_p = keys, temperature, top_p

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        # fp32 and fp64: in half precision, a sum over the vocabulary would move the ends of its tokens.
        scaled = logits if self.temperature == 1 else logits.float() / self.temperature
        p = scaled.softmax(-1, dtype=torch.float32)
        if self.top_p < 1:
            ordered, places = p.sort(-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0.0)
            p = torch.zeros_like(p).scatter_(-1, places, ordered)
        return _drawn(p, self._uniform(rows, step).to(p.device))

    def _uniform(self, rows: Sequence[int], step: int) -> Tensor:
        """A number in [0, 1) for each row, float64."""
        counters = torch.tensor([keyed_seed(self.keys[row], step) for row in rows])
        # The lower bits: shifts of signed integers leave the highest one 0.
        return (mixed_bits(counters) & ((1 << 53) - 1)).double() * 2.0**-53


def _drawn(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first place at which the running sum of weights ``(n, V)`` exceeds a share of all, ``(n,)`` in [0, 1).

    Sums of blocks find the block, and the running sum within it the place, both in fp64: one over a large vocabulary
    would take longer than its logits.
    """
    blocks = F.pad(weights, (0, -weights.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
    ends = blocks.sum(-1).double().cumsum(-1)
    wanted = _below(uniform[:, None] * ends[:, -1:], ends)
    block = torch.searchsorted(ends, wanted, right=True)
    within = blocks[torch.arange(len(block), device=block.device), block[:, 0]].double().cumsum(-1)
    before = F.pad(ends, (1, 0)).gather(1, block)
    place = torch.searchsorted(within, _below(wanted - before, within), right=True)
    return (block * _BLOCK + place)[:, 0]


def _below(wanted: Tensor, ends: Tensor) -> Tensor:
    """Numbers below the last of some ends, which rounding may have reached."""
    return wanted.clamp(min=0.0).minimum(ends[:, -1:].nextafter(torch.zeros_like(wanted)))
