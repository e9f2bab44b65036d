"""Cost of all likelihood metrics of TOFU from one pass, against one forward pass and each metric by a pass of its own.

`python -m perf.likelihoods`: rows as long as those of TOFU, each with an answer, a paraphrased one and five wrong ones.
Everything is timed in one run, alternately; the median counts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_unlearn import LitCausalLM, Probe, TokenStats, token_stats
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.functional import (
    answer_probability,
    exact_memorization,
    extraction_strength,
    loss_score,
    min_k,
    min_k_plus_plus,
    zlib_score,
)
from lightning_unlearn.language.batching import like_lengths
from lightning_unlearn.language.packaged import packaged_model
from lightning_unlearn.language.scored_rows import Kind, ScoredRow, scored_rows

from .rows import WORDS

KINDS: tuple[Kind, ...] = ("answer", "paraphrased", "perturbed")
OWN_PASSES = {
    "answer": (
        "probability",
        "exact memorisation",
        "extraction strength",
        "LOSS",
        "zlib",
        "Min-K",
        "Min-K++",
        "reference",
    ),
    "paraphrased": ("truth ratio",),
    "perturbed": ("truth ratio",),
}
"""Metrics that the field's standard evaluation reads from a pass of their own over these answers."""


def probes(count: int) -> list[Probe]:
    """Rows of TOFU's mean lengths in words: 12 of question, 27 of answer, give or take a third."""
    draw = random.Random(0)

    def text(mean: int, end: str) -> str:
        words = draw.choices(WORDS, k=round(mean * draw.uniform(2 / 3, 4 / 3)))
        return " ".join(words).capitalize() + end

    return [
        Probe(
            i,
            text(12, "?"),
            text(27, "."),
            paraphrased_answer=text(27, "."),
            perturbed_answers=tuple(text(27, ".") for _ in range(5)),
        )
        for i in range(count)
    ]


def metrics(stats: Sequence[TokenStats]) -> list[Tensor]:
    """All of the likelihood metrics, from the one record."""
    answers = [part for part in stats if part.kind == "answer"]
    return [
        torch.stack([answer_probability(part.log_prob) for part in stats]),
        torch.stack([exact_memorization(part.hit, drop_last=True) for part in answers]),
        torch.stack([extraction_strength(part.hit, drop_last=True) for part in answers]),
        torch.stack([loss_score(part.log_prob) for part in answers]),
        torch.stack([zlib_score(part.log_prob, part.zlib_length) for part in answers]),
        torch.stack([min_k(part.log_prob, drop_last=True) for part in answers]),
        torch.stack([min_k_plus_plus(part.log_prob, part.mean, part.variance, drop_last=True) for part in answers]),
    ]


class Passes:
    """Forward passes over sequences, in padded batches of like lengths."""

    def __init__(self, module: LitCausalLM, rows: Sequence[ScoredRow], max_tokens: int) -> None:
        self.module, self.max_tokens = module, max_tokens
        self.rows = {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
        self.tokens = sum(len(row.tokens.prompt) + len(row.tokens.answer) for row in rows)

    def run(self, kind: str, read: Callable[[Tensor, Tensor], object] | None = None) -> None:
        """One pass over the answers of a kind; ``read`` takes logits and labels of the answer tokens of each row."""
        rows = self.rows[kind]
        sequences = [[*row.tokens.prompt, *row.tokens.answer] for row in rows]
        for numbers in like_lengths(list(map(len, sequences)), range(len(rows)), self.max_tokens):
            width = max(len(sequences[i]) for i in numbers)
            ids = torch.tensor([sequences[i] + [0] * (width - len(sequences[i])) for i in numbers])
            mask = torch.tensor([[1] * len(sequences[i]) + [0] * (width - len(sequences[i])) for i in numbers])
            logits = self.module(input_ids=ids, attention_mask=mask).logits
            if read is not None:
                for i, row_logits in zip(numbers, logits, strict=True):
                    start, end = len(rows[i].tokens.prompt), len(sequences[i])
                    read(row_logits[start - 1 : end - 1], torch.tensor(sequences[i][start:end]))

    def plain(self) -> None:
        """One forward pass over all sequences."""
        for kind in KINDS:
            self.run(kind)

    def each_by_its_own(self) -> None:
        """Each metric from its own passes."""
        for kind, names in OWN_PASSES.items():
            for name in names:
                self.run(kind, moments if name == "Min-K++" else likelihoods)


def likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(1, labels[:, None])


def moments(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    return log_p.gather(1, labels[:, None]), mean, (p * log_p.square()).sum(-1) - mean.square()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.likelihoods", description=__doc__)
    parser.add_argument("--model", default=packaged_model(), help="hub id, folder or GGUF file")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--max_tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module = LitCausalLM(args.model)
    questions = probes(args.rows)
    passes = Passes(module, scored_rows(module._prompt_format(), questions, KINDS), args.max_tokens)
    stats = token_stats(module, questions, KINDS, args.max_tokens)

    def all_metrics() -> None:
        metrics(token_stats(module, questions, KINDS, args.max_tokens))

    runs = {
        "all metrics from one pass": all_metrics,
        "the same without shared prompts": lambda: token_stats(
            module, questions, KINDS, args.max_tokens, share_prefixes=False
        ),
        "one forward pass over the rows": passes.plain,
        "each metric by its own pass": passes.each_by_its_own,
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    with evaluating(module):
        for repeat in range(args.repeats):
            for name, run in runs.items():
                if name == "each metric by its own pass" and repeat:
                    continue  # the longest, so its noise is the least
                start = time.process_time()
                run()
                taken[name].append(time.process_time() - start)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    one = seconds["all metrics from one pass"]
    print(f"{args.rows} rows, {len(stats)} sequences of {passes.tokens} tokens; computed: {stats.tokens} tokens")
    print(f"tokens computed / tokens of the rows: {stats.tokens / passes.tokens:.2f}")
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s, {value / one:.2f} times")
    print(f"all metrics in forward passes: {one / seconds['one forward pass over the rows']:.2f}")


if __name__ == "__main__":
    main()
