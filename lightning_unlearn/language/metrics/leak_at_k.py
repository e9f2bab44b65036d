"""Leakage metric over k sampled answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.functional.language.leak import expected_best_of_k

__all__ = ["LeakAtK"]


class LeakAtK(Metric):
    r"""Mean over questions of the expected best of k sampled answers; of answers that leak or not, leak@k.

    $$\frac1N \sum_i \Big(1 - \binom{n - c_i}{k} \Big/ \binom{n}{k}\Big)$$

    In [0, 1]. Good is the value of the retrained model, which is above 0 where an answer can be guessed.

    Args:
        k: Samples that an attacker draws; each question needs at least as many.

    Raises:
        ValueError: If there are no questions, or fewer samples than ``k``.

    Example:
        >>> leak = LeakAtK(k=2)
        >>> leak.update(torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0]]))  # two questions, four samples each
        >>> leak.compute()
        tensor(0.2500)

    References:
        Reisizadeh et al., *Leak@k: Unlearning Does Not Make LLMs Forget Under Probabilistic Decoding*,
        arXiv:2511.04934.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = False
    leak: Tensor
    total: Tensor

    def __init__(self, k: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = at_least("k", k, 1)
        self.add_state("leak", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor) -> None:
        """Count questions by the scores of their samples, ``(N, n)``: 1 or true where one leaks, 0 where not."""
        if scores.dim() != 2:
            raise ValueError(f"scores must have shape (questions, samples), but got {tuple(scores.shape)}.")
        self.leak += expected_best_of_k(scores.float(), self.k).sum().to(self.leak)
        self.total += len(scores)

    def compute(self) -> Tensor:
        """The mean over all questions so far."""
        if self.total == 0:
            raise ValueError("LeakAtK has seen no questions. Call update with the scores of their samples first.")
        return self.leak / self.total
