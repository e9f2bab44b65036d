"""Searches for adversarial tokens, for many prompts at once and independently of one another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.diffusion.attacks.victim import Criterion
from lightning_unlearn.functional.diffusion.simplex import project_simplex, sample_simplex
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["GCG", "Descent", "HardPrompt", "PromptSearch", "RandomTokens", "Search", "TextGrad"]

Objective = Literal["uda", "p4d", "transfer"]
Optimizer = Literal["text_grad", "hard_prompt", "gcg", "random", "seed_search", "none"]
Inserted = Literal["prefix", "suffix", "mid", "spread", "every_3", "replace"]
Schedule = Literal["sequential", "random"]
Init = Literal["uniform", "random"]

_GCG_TOP = 256  # exchanges are drawn among so many tokens of steepest descent at each place
_DESCENT = ("text_grad", "hard_prompt", "gcg")

Loss = Callable[[Tensor, list[int]], Tensor]
"""``(token embeddings (N, k, D), prompt of each) -> losses (N,)``, with the noise and timestep of this step."""

_DRAW, _START = 2, 3


@dataclass(frozen=True)
class PromptSearch:
    """How [`PromptAttack`][lightning_unlearn.PromptAttack] searches for tokens.

    Args:
        objective: ``"uda"`` (UnlearnDiffAtk); ``"p4d"``, which matches the base model's output for the prompt without
            tokens, at twice the passes; or ``"transfer"``, which only judges prompts that are given as ``adversarial``.
        optimizer: ``"text_grad"``, projected gradients on weights of the vocabulary (UnlearnDiffAtk);
            ``"hard_prompt"``, PEZ (P4D); ``"gcg"``; ``"random"`` tokens; ``"seed_search"``, the prompt as it is with
            other seeds; ``"none"``.
        tokens: Number of tokens; the paper takes 5 for nudity and violence and its code 3 for styles and objects. With
            0 there is no attack.
        placement: Where they go, see [`insert_tokens`][lightning_unlearn.functional.diffusion.soft_tokens].
        levels: Number of noise levels. There is one round per level, and one prompt is tried per round.
        iterations: Steps at each level.
        schedule: ``"sequential"``, or ``"random"``, which draws a level for each step and prompt.
        lr: Learning rate of Adam.
        weight_decay: L2 penalty of Adam, added to the gradient.
        init: Weights of ``"text_grad"`` at the start: ``"uniform"`` or ``"random"``.
        candidates: Token replacements that ``"gcg"`` tries in each step.
        criterion: ``"l2"`` or ``"l1"``.

    Raises:
        ValueError: If an argument is out of range, or objective and optimizer do not fit.
    """

    objective: Objective = "uda"
    optimizer: Optimizer = "text_grad"
    tokens: int = 5
    placement: Inserted = "prefix"
    levels: int = 50
    iterations: int = 40
    schedule: Schedule = "sequential"
    lr: float = 0.01
    weight_decay: float = 0.1
    init: Init = "uniform"
    candidates: int = 32
    criterion: Criterion = "l2"

    def __post_init__(self) -> None:
        one_of("objective", self.objective, Objective)
        one_of("optimizer", self.optimizer, Optimizer)
        one_of("placement", self.placement, Inserted)
        one_of("schedule", self.schedule, Schedule)
        one_of("init", self.init, Init)
        one_of("criterion", self.criterion, Criterion)
        at_least("tokens", self.tokens, 0)
        at_least("levels", self.levels, 1)
        at_least("iterations", self.iterations, 1)
        at_least("candidates", self.candidates, 1)
        at_least("weight_decay", self.weight_decay, 0)
        above("lr", self.lr, 0)
        if self.objective == "transfer":
            one_of("optimizer", self.optimizer, ("none",), hint="objective='transfer' only judges prompts")
        elif self.objective == "p4d":
            one_of("optimizer", self.optimizer, _DESCENT, hint="objective='p4d' is a loss to descend on")

    @property
    def inserts(self) -> bool:
        """Whether tokens are inserted into prompts."""
        return self.optimizer in (*_DESCENT, "random") and self.tokens > 0

    @property
    def needs_targets(self) -> bool:
        """Whether the search compares with images."""
        return self.optimizer in _DESCENT and self.tokens > 0

    @property
    def attacks(self) -> bool:
        """Whether anything but the prompts as they are is tried."""
        return self.inserts or self.optimizer == "seed_search" or self.objective == "transfer"

    def begin(self, embeddings: Tensor, allowed: Tensor, keys: list[int], seed: int, chunk: int) -> Search | None:
        """Begin the search for prompts; ``None`` where no tokens are inserted. Arguments as for `Search`."""
        kinds: dict[str, Callable[..., Search]] = {
            "text_grad": TextGrad,
            "hard_prompt": HardPrompt,
            "gcg": GCG,
            "random": RandomTokens,
        }
        return kinds[self.optimizer](embeddings[allowed].float(), keys, self, seed, chunk) if self.inserts else None


class Search(ABC):
    """Tokens for each of some prompts.

    Args:
        table: Embeddings of the tokens that may be inserted, shape ``(V, D)``.
        keys: A number for each prompt, which together with the seed determines its random draws.
        settings: The settings.
        seed: Seed of the draws.
        chunk: Rows of a forward pass.
    """

    def __init__(self, table: Tensor, keys: list[int], settings: PromptSearch, seed: int = 0, chunk: int = 8) -> None:
        self.table, self.keys, self.settings, self.seed, self.chunk = table, keys, settings, seed, chunk

    @abstractmethod
    def tokens(self, rows: list[int], number: int) -> Tensor:
        """Places in ``table`` of the tokens to try in a round, shape ``(len(rows), k)``."""

    def _uniform(self, rows: list[int], *key: int) -> Tensor:
        """Numbers in [0, 1) of each prompt, shape ``(len(rows), k)``."""
        drawn = [
            torch.rand(
                self.settings.tokens, generator=keyed_generator(self.seed, *key, self.keys[r]), dtype=torch.float64
            )
            for r in rows
        ]
        return torch.stack(drawn).to(self.table.device)

    def _any(self, rows: list[int], *key: int) -> Tensor:
        return (self._uniform(rows, *key) * len(self.table)).long()


class Descent(Search):
    """A search that lowers a loss step by step."""

    @abstractmethod
    def step(self, rows: list[int], number: int, loss: Loss) -> Tensor:
        """Improve the tokens of these prompts once, and return the losses ``(len(rows),)`` of what was tried."""


class RandomTokens(Search):
    """Tokens at random in each round: the control that every other search must beat."""

    def tokens(self, rows: list[int], number: int) -> Tensor:
        """New ones in each round."""
        return self._any(rows, _DRAW, number)


class TextGrad(Descent):
    r"""Projected gradient descent on weights $U$ over the whole vocabulary, one point of the simplex per token.

    The forward pass has one token drawn from each row of $U$. The gradient passes straight through the draw, as
    $\mathrm{clip}(\partial L / \partial H, -1, 1)$ with the one-hot rows $H$; after a step of Adam, rows are projected
    onto the simplex. The result is the largest weight of each row.
    """

    def __init__(self, table: Tensor, keys: list[int], settings: PromptSearch, seed: int = 0, chunk: int = 8) -> None:
        super().__init__(table, keys, settings, seed, chunk)
        shape = (settings.tokens, len(table))
        self.weights = [torch.full(shape, 1 / len(table), device=table.device) for _ in keys]
        if settings.init == "random":
            for weights, key in zip(self.weights, keys, strict=True):
                weights.copy_(project_simplex(torch.rand(shape, generator=keyed_generator(seed, _START, key))))
        self.optimizer = torch.optim.Adam(self.weights, lr=settings.lr, weight_decay=settings.weight_decay)

    def step(self, rows: list[int], number: int, loss: Loss) -> Tensor:
        """One step of Adam and one projection."""
        weights = torch.stack([self.weights[r] for r in rows])
        drawn = sample_simplex(weights, self._uniform(rows, _DRAW, number))
        losses, gradient = _token_gradient(self.table, drawn, rows, loss)
        for row, part in zip(rows, gradient.clamp(-1, 1), strict=True):
            self.weights[row].grad = part
        self.optimizer.step()
        self.optimizer.zero_grad()  # to None: a finished prompt does not move
        for row in rows:
            self.weights[row].copy_(project_simplex(self.weights[row]))
        return losses

    def tokens(self, rows: list[int], number: int) -> Tensor:
        """The largest weight of each row; of equal ones the first."""
        return torch.stack([self.weights[r].argmax(-1) for r in rows])


class HardPrompt(Descent):
    """PEZ: embeddings that move by the gradient at the tokens nearest to them.

    References:
        Wen et al., *Hard Prompts Made Easy*, arXiv:2302.03668.
    """

    def __init__(self, table: Tensor, keys: list[int], settings: PromptSearch, seed: int = 0, chunk: int = 8) -> None:
        super().__init__(table, keys, settings, seed, chunk)
        self.points = [table[part].clone() for part in self._any(list(range(len(keys))), _START)]
        self.optimizer = torch.optim.Adam(self.points, lr=settings.lr, weight_decay=settings.weight_decay)
        self._directions = F.normalize(table, dim=-1)

    def step(self, rows: list[int], number: int, loss: Loss) -> Tensor:
        """One step of Adam with the gradient at the nearest tokens."""
        tokens = self.table[self.tokens(rows, number)].requires_grad_()
        losses = loss(tokens, rows)
        (gradient,) = torch.autograd.grad(losses.sum(), tokens)
        for row, part in zip(rows, gradient, strict=True):
            self.points[row].grad = part
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses.detach()

    def tokens(self, rows: list[int], number: int) -> Tensor:
        """The nearest tokens by the cosine."""
        points = torch.stack([self.points[r] for r in rows])
        return (F.normalize(points, dim=-1) @ self._directions.T).argmax(-1)


class GCG(Descent):
    """Greedy coordinate gradient (GCG): the best of many replacements of one token that the gradient favours.

    The current tokens compete as well, so at the noise of a step the loss never rises.

    References:
        Zou et al., *Universal and Transferable Adversarial Attacks on Aligned Language Models*, arXiv:2307.15043.
    """

    def __init__(self, table: Tensor, keys: list[int], settings: PromptSearch, seed: int = 0, chunk: int = 8) -> None:
        super().__init__(table, keys, settings, seed, chunk)
        self.chosen = self._any(list(range(len(keys))), _START)

    def step(self, rows: list[int], number: int, loss: Loss) -> Tensor:
        """One exchange at most."""
        now, count, top = self.chosen[rows], self.settings.candidates, min(_GCG_TOP, len(self.table))
        losses, gradient = _token_gradient(self.table, now, rows, loss)
        favoured = gradient.topk(top, largest=False).indices
        tried = now[:, None].repeat(1, count, 1)
        for at, row in enumerate(rows):
            generator = keyed_generator(self.seed, _DRAW, number, self.keys[row])
            places = torch.randint(self.settings.tokens, (count,), generator=generator)
            picks = torch.randint(top, (count,), generator=generator)
            tried[at, torch.arange(count), places] = favoured[at, places, picks]
        flat, owners = tried.flatten(0, 1), [r for r in rows for _ in range(count)]
        with torch.no_grad():
            chunks = [slice(i, i + self.chunk) for i in range(0, len(flat), self.chunk)]
            tried_losses = torch.cat([loss(self.table[flat[part]], owners[part]) for part in chunks])
        best, which = tried_losses.reshape(len(rows), -1).min(1)
        better = best < losses
        self.chosen[rows] = torch.where(better[:, None], tried[torch.arange(len(rows)), which], now)
        return torch.minimum(best, losses)

    def tokens(self, rows: list[int], number: int) -> Tensor:
        """The current tokens."""
        return self.chosen[rows]


def _token_gradient(table: Tensor, chosen: Tensor, rows: list[int], loss: Loss) -> tuple[Tensor, Tensor]:
    """Losses ``(N,)`` at tokens, and their gradient ``(N, k, V)`` with respect to the one-hot rows that choose them."""
    tokens = table[chosen].requires_grad_()
    losses = loss(tokens, rows)
    (gradient,) = torch.autograd.grad(losses.sum(), tokens)
    return losses.detach(), gradient @ table.T
