"""How tokens are searched for. Prompts are searched together, and each as if it were alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.functional.diffusion.simplex import project_simplex, sample_simplex
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["GCG", "Descent", "HardPrompt", "RandomTokens", "Search", "TextGrad"]

Loss = Callable[[Tensor, list[int]], Tensor]
"""``(token embeddings (N, k, D), prompt of each) -> losses (N,)``, with the noise and timestep of this step."""

_DRAW, _START = 2, 3


class Search(ABC):
    """Tokens for each of some prompts.

    Args:
        table: Embeddings of the tokens that may be used, shape ``(V, D)``.
        keys: What the draws of each prompt depend on, beside the seed.
        tokens: Number of tokens ``k``.
        seed: Seed of the draws.
    """

    def __init__(self, table: Tensor, keys: list[int], tokens: int, seed: int) -> None:
        self.table, self.keys, self.k, self.seed = table, keys, tokens, seed

    @abstractmethod
    def tokens(self, rows: list[int], number: int) -> Tensor:
        """Places in ``table`` of the tokens to try in a round, shape ``(len(rows), k)``."""

    def _uniform(self, rows: list[int], *key: int) -> Tensor:
        """Numbers in [0, 1) of each prompt, shape ``(len(rows), k)``."""
        drawn = [
            torch.rand(self.k, generator=keyed_generator(self.seed, *key, self.keys[r]), dtype=torch.float64)
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
    r"""Projected gradient descent on weights $U$ of the whole vocabulary, one point of the simplex a token.

    The forward pass has one token drawn from each row of $U$. The gradient passes straight through the draw, as
    $\mathrm{clip}(\partial L / \partial H, -1, 1)$ with the one-hot rows $H$; after a step of Adam, rows are projected
    onto the simplex. The result is the largest weight of each row.

    Args:
        table: Embeddings of the tokens that may be used, shape ``(V, D)``.
        keys: What the draws of each prompt depend on, beside the seed.
        tokens: Number of tokens ``k``.
        seed: Seed of the draws.
        lr: Learning rate of Adam.
        weight_decay: Its L2 term, in the gradient.
        init: ``"uniform"`` weights, or ``"random"`` ones.
    """

    def __init__(
        self,
        table: Tensor,
        keys: list[int],
        tokens: int,
        seed: int,
        lr: float = 0.01,
        weight_decay: float = 0.1,
        init: Literal["uniform", "random"] = "uniform",
    ) -> None:
        super().__init__(table, keys, tokens, seed)
        shape = (tokens, len(table))
        self.weights = [torch.full(shape, 1 / len(table), device=table.device) for _ in keys]
        if init == "random":
            for weights, key in zip(self.weights, keys, strict=True):
                drawn = torch.rand(shape, generator=keyed_generator(seed, _START, key))
                weights.copy_(project_simplex(drawn))
        self.optimizer = torch.optim.Adam(self.weights, lr=lr, weight_decay=weight_decay)

    def step(self, rows: list[int], number: int, loss: Loss) -> Tensor:
        """One step of Adam and one projection."""
        weights = torch.stack([self.weights[r] for r in rows])
        drawn = sample_simplex(weights, self._uniform(rows, _DRAW, number))
        losses, gradient = _token_gradient(self.table, drawn, rows, loss)
        for row, part in zip(rows, gradient.clamp(-1, 1), strict=True):
            self.weights[row].grad = part
        self.optimizer.step()
        self.optimizer.zero_grad()  # to None: a prompt that is done does not move
        for row in rows:
            self.weights[row].copy_(project_simplex(self.weights[row]))
        return losses

    def tokens(self, rows: list[int], number: int) -> Tensor:
        """The largest weight of each row; of equal ones the first."""
        return torch.stack([self.weights[r].argmax(-1) for r in rows])


class HardPrompt(Descent):
    """PEZ: embeddings that move by the gradient at the tokens nearest to them.

    Args:
        table: Embeddings of the tokens that may be used, shape ``(V, D)``.
        keys: What the draws of each prompt depend on, beside the seed.
        tokens: Number of tokens ``k``.
        seed: Seed of the tokens at the start.
        lr: Learning rate of Adam.
        weight_decay: Its L2 term, in the gradient.

    References:
        Wen et al., *Hard Prompts Made Easy*, arXiv:2302.03668.
    """

    def __init__(
        self, table: Tensor, keys: list[int], tokens: int, seed: int, lr: float = 0.01, weight_decay: float = 0.1
    ) -> None:
        super().__init__(table, keys, tokens, seed)
        self.points = [table[part].clone() for part in self._any(list(range(len(keys))), _START)]
        self.optimizer = torch.optim.Adam(self.points, lr=lr, weight_decay=weight_decay)
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
    """Greedy coordinate gradient: of many exchanges of one token that the gradient favours, the best.

    The tokens as they are take part, so at the noise of a step its loss never rises.

    Args:
        table: Embeddings of the tokens that may be used, shape ``(V, D)``.
        keys: What the draws of each prompt depend on, beside the seed.
        tokens: Number of tokens ``k``.
        seed: Seed of the tokens at the start and of the exchanges.
        candidates: Exchanges tried in a step.
        top_k: They are among so many tokens of steepest descent at each place.
        chunk: Rows of a forward pass.

    References:
        Zou et al., *Universal and Transferable Adversarial Attacks on Aligned Language Models*, arXiv:2307.15043.
    """

    def __init__(
        self,
        table: Tensor,
        keys: list[int],
        tokens: int,
        seed: int,
        candidates: int = 32,
        top_k: int = 256,
        chunk: int = 8,
    ) -> None:
        super().__init__(table, keys, tokens, seed)
        self.candidates, self.top_k, self.chunk = candidates, min(top_k, len(table)), chunk
        self.chosen = self._any(list(range(len(keys))), _START)

    def step(self, rows: list[int], number: int, loss: Loss) -> Tensor:
        """One exchange at most."""
        now = self.chosen[rows]
        losses, gradient = _token_gradient(self.table, now, rows, loss)
        favoured = gradient.topk(self.top_k, largest=False).indices
        tried = now[:, None].repeat(1, self.candidates, 1)
        for at, row in enumerate(rows):
            generator = keyed_generator(self.seed, _DRAW, number, self.keys[row])
            places = torch.randint(self.k, (self.candidates,), generator=generator)
            picks = torch.randint(self.top_k, (self.candidates,), generator=generator)
            tried[at, torch.arange(self.candidates), places] = favoured[at, places, picks]
        flat, owners = tried.flatten(0, 1), [r for r in rows for _ in range(self.candidates)]
        with torch.no_grad():
            found = torch.cat(
                [
                    loss(self.table[flat[i : i + self.chunk]], owners[i : i + self.chunk])
                    for i in range(0, len(flat), self.chunk)
                ]
            ).reshape(len(rows), -1)
        best, which = found.min(1)
        better = best < losses
        self.chosen[rows] = torch.where(better[:, None], tried[torch.arange(len(rows)), which], now)
        return torch.minimum(best, losses)

    def tokens(self, rows: list[int], number: int) -> Tensor:
        """The tokens as they are."""
        return self.chosen[rows]


def _token_gradient(table: Tensor, chosen: Tensor, rows: list[int], loss: Loss) -> tuple[Tensor, Tensor]:
    """Losses ``(N,)`` at tokens, and their gradient ``(N, k, V)`` with respect to the one-hot rows that choose them."""
    tokens = table[chosen].requires_grad_()
    losses = loss(tokens, rows)
    (gradient,) = torch.autograd.grad(losses.sum(), tokens)
    return losses.detach(), gradient @ table.T
