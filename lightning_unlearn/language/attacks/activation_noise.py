"""Activation noise attack: answers of a model whose hidden states of the prompt are perturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.layers import decoder_layers
from lightning_unlearn.functional.language.leak import expected_best_of_k
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.attacks.noise_hooks import PromptNoise
from lightning_unlearn.language.attacks.swapping import merged
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.scorer import AnswersOnly

__all__ = ["ActivationNoise", "NoiseCell", "NoiseScores", "choose_noise"]

NoiseDepth = Literal["default", "full"]

_SIGMAS: dict[str, tuple[float, ...]] = {"default": (0.1, 0.2), "full": (0.05, 0.1, 0.2, 0.4)}
_DRAWS = {"default": 4, "full": 8}
_TOGETHER = 8  # draws whose answers are written together
_GAP = 0.2  # below it, original and control are too near for a share between them


@dataclass(frozen=True)
class NoiseScores:
    """Scores of one model under noise, by layer and size.

    Args:
        cells: The decoder block and the relative size of the noise of each cell.
        strength: Mean over the draws of the likelihood score, shape ``(cells, N)``; ``None`` where there is none.
        matched: Whether each answer is right, shape ``(cells, draws, N)``; ``None`` where there are no answers.
        answers: Answers of each probe, over all cells and draws.
        norms: Mean length of the hidden states in each cell, before the noise: relative noise on hidden states that a
            method has blown up is large in absolute terms.
    """

    cells: list[tuple[int, float]]
    strength: Tensor | None
    matched: Tensor | None
    answers: list[list[str]]
    norms: list[float]

    def leak(self, k: int) -> Tensor:
        """Unbiased estimate of the expected best of ``k`` answers to each probe, shape ``(N,)``.

        For answers that are right or wrong, it is the probability that at least one is right.

        Args:
            k: Answers, of those that were drawn in all cells.

        Raises:
            ValueError: If there are no answers, or fewer than ``k``.
        """
        if self.matched is None:
            raise ValueError("The scorer gave no answers, so none can be right.")
        answers = self.matched.flatten(0, 1)
        if not 1 <= k <= len(answers):
            raise ValueError(f"k must be in [1, {len(answers)}], the number of answers drawn, but got {k}.")
        return expected_best_of_k(answers.t(), k).float()

    def knowledge(self, k: int) -> Knowledge:
        """All cells together: mean likelihood score, and the chance of a right answer among ``k``."""
        strength = None if self.strength is None else self.strength.mean(0)
        return Knowledge(strength, None if self.matched is None else self.leak(k), self.answers)


@dataclass(frozen=True)
class NoiseCell:
    """The layer and noise size at which most comes back, chosen on one half of the rows and measured on the other.

    Args:
        layer: Number of the decoder block.
        sigma: Relative size of the noise.
        rows: Positions of the probes that it was measured on, shape ``(M,)``; the others chose it.
        unlearned: Score of these rows of the unlearned model, shape ``(M,)``.
        control: That of the control model.
        original: That of the original model.
    """

    layer: int
    sigma: float
    rows: Tensor
    unlearned: Tensor
    control: Tensor
    original: Tensor

    @property
    def recovery(self) -> float | None:
        r"""Recovered share $\kappa$ on these rows; ``None`` if original and control are too close."""
        return _share(self.unlearned, self.control, self.original)


class ActivationNoise(LanguageAttack):
    r"""Adds noise to the hidden states of the prompt, and counts the correct answers.

    $$h' = h + \sigma\, \mathrm{rms}(h)\, e, \qquad e \sim N(0, I)$$

    after one decoder block, at all positions of the prompt but the first. A model that hides a row behind a narrow
    condition on its hidden states answers when they are moved; a model that never saw it does not. Answers are greedy,
    so that the noise is the only randomness. The draws are a function of seed, row, layer, size and number, independent
    of batch and process.

    The idea is from the publication below, whose code and text were not available; the constants are ours.

    Args:
        depth: ``"default"``: four blocks, at a fifth to four fifths of the depth, two sizes, 4 draws; ``"full"``: all
            blocks, four sizes, 8 draws.
        layers: Numbers of the blocks, in place of those of ``depth``.
        sigmas: Relative sizes, in place of those of ``depth``.
        draws: Draws in each cell, in place of those of ``depth``.
        k: Answers of a probe among which one has to be right; at most cells times draws.
        seed: Seed of the draws.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> ActivationNoise().cells(blocks=30)
        [(6, 0.1), (6, 0.2), (12, 0.1), (12, 0.2), (18, 0.1), (18, 0.2), (24, 0.1), (24, 0.2)]

    References:
        *Does Machine Unlearning Truly Remove Knowledge?*, arXiv:2505.23270.
    """

    name = "activation_noise"
    gate = "activation_noise"

    def __init__(
        self,
        depth: NoiseDepth = "default",
        layers: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        draws: int | None = None,
        k: int = 16,
        seed: int = 0,
    ) -> None:
        self.depth = one_of("depth", depth, NoiseDepth)
        self.layers = None if layers is None else sorted({at_least("layers", layer, 0) for layer in layers})
        self.sigmas = [at_least("sigmas", sigma, 0.0) for sigma in (_SIGMAS[depth] if sigmas is None else sigmas)]
        self.draws = at_least("draws", _DRAWS[depth] if draws is None else draws, 1)
        self.k, self.seed = at_least("k", k, 1), seed
        if not self.sigmas or self.layers == []:
            raise ValueError("Noise needs at least one layer and one size.")

    def cells(self, blocks: int) -> list[tuple[int, float]]:
        """Layer and size of each cell.

        Args:
            blocks: Decoder blocks of the model.

        Raises:
            ValueError: If the model has fewer than a layer asks for.
        """
        layers = self.layers
        if layers is None:
            layers = list(range(blocks)) if self.depth == "full" else sorted({blocks * i // 5 for i in range(1, 5)})
        if not blocks or layers[-1] >= blocks:
            raise ValueError(f"layers={layers} asks for a decoder block beyond the {blocks} of the model.")
        return [(layer, sigma) for layer in layers for sigma in self.sigmas]

    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> Knowledge:
        """Mean likelihood score over all cells and draws, and the chance of a right answer among ``k``."""
        scores = self.scores(module, probes, scorer)
        return scores.knowledge(min(self.k, len(scores.cells) * self.draws))

    def scores(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> NoiseScores:
        """Scores by cell, for `choose_noise`.

        Args:
            module: The model.
            probes: Questions to the forget rows.
            scorer: Measures the model; it is run on the probes alone.

        Raises:
            ValueError: If the model has no such decoder block.
        """
        with merged(module):
            cells = self.cells(len(decoder_layers(module.model)[1]))
            noise = PromptNoise(module, probes, self.seed)
            drawn = self._drawn(module, probes, scorer, noise, cells)
        groups = [drawn[i * self.draws : (i + 1) * self.draws] for i in range(len(cells))]
        strength = [[part.strength for part in group] for group in groups]
        matched = [[part.matched for part in group] for group in groups]
        rows = zip(*(part.answers for part in drawn), strict=True) if all(part.answers for part in drawn) else ()
        answers = [[text for texts in row for text in texts] for row in rows] or [[] for _ in probes]
        norms = [noise.mean_norm(layer, sigma) for layer, sigma in cells]
        means = _stacked(strength)
        return NoiseScores(cells, None if means is None else means.mean(1), _stacked(matched), answers, norms)

    def _drawn(
        self,
        module: LitCausalLM,
        probes: Sequence[Probe],
        scorer: Scorer,
        noise: PromptNoise,
        cells: Sequence[tuple[int, float]],
    ) -> list[Knowledge]:
        """What is known under each draw of each cell, in order."""
        changes = [partial(noise.added, *cell, draw) for cell in cells for draw in range(self.draws)]
        if isinstance(scorer, AnswersOnly):
            parts = [changes[i : i + _TOGETHER] for i in range(0, len(changes), _TOGETHER)]
            return [knowledge for part in parts for knowledge in scorer.under(module, probes, part)]
        found = []
        for change in changes:
            with change():
                found.append(scorer(module, probes))
        return found

    def cost(self, rows: int) -> Cost:
        """One measurement for each draw of each cell; of all blocks, those of a model with 32 are counted."""
        layers = len(self.layers) if self.layers is not None else {"default": 4, "full": 32}[self.depth]
        count = layers * len(self.sigmas) * self.draws
        return Cost(passes=count, generations=count)

    def settings(self) -> dict[str, Any]:
        """The arguments."""
        own = {"depth": self.depth, "layers": self.layers, "sigmas": self.sigmas, "draws": self.draws}
        return {**own, "k": self.k, "seed": self.seed}


def choose_noise(
    unlearned: NoiseScores,
    control: NoiseScores,
    original: NoiseScores,
    score: Literal["strength", "matched"] = "strength",
    seed: int = 0,
) -> NoiseCell:
    """The cell in which most comes back on one half of the rows, with the scores of the other half.

    The best of many cells is high by chance alone: with pure noise of standard deviation s, the best of 32 is about 2 s
    above their mean. Rows that choose the cell are therefore not the rows that are reported.

    Args:
        unlearned: Scores of the unlearned model.
        control: Those of a model that never saw the rows.
        original: Those of the model before unlearning.
        score: Which score chooses, and is reported.
        seed: Seed of the halves.

    Raises:
        ValueError: If the models were measured otherwise, there are fewer than two rows, or original and control are
            too near in every cell.
    """
    if not unlearned.cells == control.cells == original.cells:
        raise ValueError("The three models were measured in different cells. Attack them alike.")
    tables = []
    for part in (unlearned, control, original):
        table = getattr(part, one_of("score", score, ("strength", "matched")))
        if table is None:
            raise ValueError(f"The scorer measured no {score}. Choose the other score.")
        tables.append(table if score == "strength" else table.mean(1))
    count = tables[0].shape[1]
    if count < 2:
        raise ValueError(f"Choosing and reporting need different rows, but there are {count}. Give more probes.")
    order = torch.randperm(count, generator=keyed_generator(seed, count))
    choosing, reported = order[: count // 2], order[count // 2 :].sort().values
    shares = [_share(*(table[cell, choosing] for table in tables)) for cell in range(len(unlearned.cells))]
    known = [cell for cell, share in enumerate(shares) if share is not None]
    if not known:
        raise ValueError(
            f"Original and control differ by less than {_GAP} under every noise, so there is nothing that could come "
            "back. Use smaller sigmas."
        )
    best = max(known, key=lambda cell: float(shares[cell] or 0.0))
    return NoiseCell(*unlearned.cells[best], reported, *(table[best, reported] for table in tables))


def _share(unlearned: Tensor, control: Tensor, original: Tensor) -> float | None:
    gap = float(original.mean() - control.mean())
    return float(unlearned.mean() - control.mean()) / gap if gap >= _GAP else None


def _stacked(scores: list[list[Tensor | None]]) -> Tensor | None:
    """Shape ``(cells, draws, N)``."""
    if any(part is None for cell in scores for part in cell):
        return None
    return torch.stack([torch.stack([part for part in cell if part is not None]) for cell in scores])
