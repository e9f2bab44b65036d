"""Estimators and confidence bounds of leakage in sampled answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "clopper_pearson_upper",
    "deviation_upper_bound",
    "dkw_epsilon",
    "expected_best_of_k",
    "leak_at_k",
    "mean_upper_bound",
    "tail_upper_bound",
]

_HALVINGS = 64  # of an interval in [0, 1]: past the resolution of float64


def leak_at_k(leaks: Tensor, samples: int, k: int) -> Tensor:
    r"""Unbiased estimate of the probability that at least one of k samples leaks, where c of n samples leak.

    $$\mathrm{leak@}k = 1 - \binom{n - c}{k} \Big/ \binom{n}{k}$$

    Args:
        leaks: Number of samples that leak, $c$, of each question, shape ``(N,)``.
        samples: Samples of each question, $n$.
        k: Samples that an attacker draws, in ``[1, n]``.

    Returns:
        Shape ``(N,)``, in [0, 1], float64.

    Raises:
        ValueError: If ``k`` is not in ``[1, n]``, or more samples leak than there are.

    Example:
        >>> leak_at_k(torch.tensor([0, 1, 4]), samples=4, k=2)
        tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)

    References:
        Reisizadeh et al., *Leak@k: Unlearning Does Not Make LLMs Forget Under Probabilistic Decoding*,
        arXiv:2511.04934.
    """
    _check_k(samples, k)
    leaks = leaks.double()
    if leaks.numel() and not (leaks.min() >= 0 and leaks.max() <= samples):
        raise ValueError(f"Of {samples} samples, between 0 and {samples} leak, but got {leaks.tolist()!s:.80}.")
    silent = samples - leaks
    chance = torch.exp(_log_binomial(silent, k) - _log_binomial(torch.tensor(float(samples)), k))
    return torch.where(silent < k, 1.0, 1 - chance)


def expected_best_of_k(scores: Tensor, k: int) -> Tensor:
    r"""Unbiased estimate of the expected best score of k samples from n; for scores 0 and 1 it is `leak_at_k`.

    $$\mathbb{E} \max = \sum_{i=k}^{n} x_{(i)} \binom{i-1}{k-1} \Big/ \binom{n}{k}, \; x_{(1)} \le \ldots \le x_{(n)}$$

    Args:
        scores: Scores of the samples of each question, shape ``(..., n)``.
        k: Samples that an attacker draws, in ``[1, n]``.

    Returns:
        Shape ``(...)``, float64.

    Raises:
        ValueError: If ``k`` is not in ``[1, n]``, or a score is NaN.

    Example:
        >>> expected_best_of_k(torch.tensor([0.0, 1.0, 0.0, 0.0]), k=2)
        tensor(0.5000, dtype=torch.float64)
    """
    samples = scores.shape[-1]
    _check_k(samples, k)
    if scores.isnan().any():
        raise ValueError("A score of a sample is NaN, so there is no best one. Score it 0, or leave the question out.")
    rank = torch.arange(1, samples + 1, dtype=torch.float64, device=scores.device)
    ways = _log_binomial(rank - 1, k - 1) - _log_binomial(rank[-1:], k)
    weight = torch.where(rank < k, 0.0, torch.exp(ways))
    return (scores.double().sort(-1).values * weight).sum(-1)


def clopper_pearson_upper(successes: Tensor, samples: int, alpha: float = 0.05) -> Tensor:
    r"""One-sided upper confidence bound of a probability, $\mathrm{Beta}^{-1}(1 - \alpha;\, S + 1,\, n - S)$.

    It is the probability $p$ with $P(\mathrm{Bin}(n, p) \le S) = \alpha$, and 1 where $S = n$.

    Args:
        successes: Number of samples that leak, $S$, of each question, any shape.
        samples: Samples of each question, $n$.
        alpha: One minus the level, in (0, 1).

    Returns:
        The shape of ``successes``, float64.

    Raises:
        ValueError: If there are no samples, more successes than samples, or ``alpha`` is out of range.

    Example:
        >>> clopper_pearson_upper(torch.tensor([0, 3, 100]), samples=100)
        tensor([0.0295, 0.0757, 1.0000], dtype=torch.float64)

    References:
        Scholten et al., *A Probabilistic Perspective on Unlearning and Alignment for Large Language Models*,
        arXiv:2410.03523.
    """
    _check_level(samples, alpha, 1.0)
    successes = successes.double()
    if successes.numel() and not (successes.min() >= 0 and successes.max() <= samples):
        raise ValueError(f"successes must be in [0, {samples}], but got {successes.tolist()!s:.80}.")
    count = torch.arange(samples + 1, dtype=torch.float64, device=successes.device)
    ways = _log_binomial(torch.tensor(float(samples), device=count.device), count)
    ways = torch.where(count <= successes[..., None], ways, -torch.inf)
    low, high = successes / samples, torch.ones_like(successes)
    for _ in range(_HALVINGS):
        p = ((low + high) / 2)[..., None]
        tail = (ways + torch.xlogy(count, p) + torch.xlogy(samples - count, 1 - p)).logsumexp(-1).exp()
        above = tail > alpha
        low, high = torch.where(above, p[..., 0], low), torch.where(above, high, p[..., 0])
    return torch.where(successes == samples, 1.0, (low + high) / 2)


def dkw_epsilon(samples: int, alpha: float = 0.05) -> float:
    r"""Half-width of a one-sided confidence band of a distribution function, $\sqrt{\ln(1/\alpha) / (2n)}$.

    The inequality of Dvoretzky, Kiefer and Wolfowitz with Massart's constant. A band on both sides needs $\alpha/2$.

    Args:
        samples: Independent samples, $n$.
        alpha: One minus the level, in (0, 1/2].

    Raises:
        ValueError: If there are no samples, or ``alpha`` is out of range.

    Example:
        >>> round(dkw_epsilon(100), 6)
        0.122387
    """
    _check_level(samples, alpha, 0.5)
    return math.sqrt(math.log(1 / alpha) / (2 * samples))


def tail_upper_bound(scores: Tensor, threshold: float, alpha: float = 0.05) -> Tensor:
    r"""Upper confidence bound of the probability of a score above a threshold, $1 - F_n(x) + \epsilon$.

    For scores of 0 and 1, `clopper_pearson_upper` is tighter: 3.8 times at 128 samples without a leak.

    Args:
        scores: Scores of the samples of each question, shape ``(..., n)``.
        threshold: The threshold $x$.
        alpha: One minus the level, in (0, 1/2].

    Returns:
        Shape ``(...)``, in [0, 1], float64.

    Raises:
        ValueError: If there are no samples, or ``alpha`` is out of range.

    References:
        Scholten et al., *A Probabilistic Perspective on Unlearning and Alignment for Large Language Models*,
        arXiv:2410.03523.
    """
    return ((scores > threshold).double().mean(-1) + dkw_epsilon(scores.shape[-1], alpha)).clamp(max=1)


def mean_upper_bound(scores: Tensor, alpha: float = 0.05) -> Tensor:
    r"""Upper confidence bound of the mean of scores in [0, 1], $1 - \int_0^1 \max(F_n(x) - \epsilon, 0)\, dx$.

    Exact: $F_n$ is constant between two order statistics. The authors' package sums over 100 points, which is up to
    1/99 looser.

    Args:
        scores: Scores of the samples of each question, in [0, 1], shape ``(..., n)``.
        alpha: One minus the level, in (0, 1/2].

    Returns:
        Shape ``(...)``, in [0, 1], float64.

    Raises:
        ValueError: If a score is outside [0, 1], there are no samples, or ``alpha`` is out of range.

    Example:
        >>> mean_upper_bound(torch.tensor([0.0] * 90 + [1.0] * 10))
        tensor(0.2224, dtype=torch.float64)

    References:
        Scholten et al., *A Probabilistic Perspective on Unlearning and Alignment for Large Language Models*,
        arXiv:2410.03523.
    """
    ordered = _ordered(scores)
    samples = scores.shape[-1]
    reached = torch.arange(1, samples + 1, dtype=torch.float64, device=scores.device) / samples
    lower = (reached - dkw_epsilon(samples, alpha)).clamp(min=0)
    return 1 - (lower * ordered[..., 1:].diff(dim=-1)).sum(-1)


def deviation_upper_bound(scores: Tensor, alpha: float = 0.05) -> Tensor:
    r"""Upper confidence bound of the standard deviation of scores in [0, 1].

    It is the largest standard deviation of any distribution whose distribution function lies in the band
    $F_n \pm \epsilon(n, \alpha/2)$. That distribution function follows the upper end of the band up to some level, and
    the lower end from there on. Since both ends are needed, ``alpha`` is split over two sides. The bound of the
    authors' package is looser, because it combines the worst mean and the worst spread separately.

    Args:
        scores: Scores of the samples of each question, in [0, 1], shape ``(..., n)``.
        alpha: One minus the level, in (0, 1).

    Returns:
        Shape ``(...)``, in [0, 1/2], float64.

    Raises:
        ValueError: If a score is outside [0, 1], there are no samples, or ``alpha`` is out of range.

    Example:
        >>> deviation_upper_bound(torch.zeros(128), alpha=0.01)
        tensor(0.3510, dtype=torch.float64)

    References:
        Scholten et al., *A Probabilistic Perspective on Unlearning and Alignment for Large Language Models*,
        arXiv:2410.03523.
    """
    ordered, samples = _ordered(scores), scores.shape[-1]
    epsilon = dkw_epsilon(samples, alpha / 2)
    reached = torch.arange(samples + 1, dtype=torch.float64, device=scores.device) / samples
    levels = torch.cat([reached[[0, -1]], reached - epsilon, reached + epsilon]).clamp(0, 1).unique()
    width, middle = levels.diff(), (levels[1:] + levels[:-1]) / 2
    # Quantiles of both ends of the band between two levels; they are those of order statistics, 0 or 1.
    low = ordered[..., ((middle - epsilon) * samples).ceil().long().clamp(0, samples)]
    high = ordered[..., ((middle + epsilon) * samples).ceil().long().clamp(0, samples + 1)]
    # First and second moment where all levels before an interval are low, and it and all after it are high.
    first, second = (_switched(width * low**power, width * high**power) for power in (1, 2))
    # The variance is a concave parabola in the part of the interval that is low too.
    step = low - high
    part = torch.where(step < 0, ((low + high) / 2 - first) / step.clamp(max=-1e-300), 0.0)
    part = torch.minimum(part.clamp(min=0), width)
    variance = second + part * (low**2 - high**2) - (first + part * step) ** 2
    return variance.amax(-1).clamp(0, 0.25).sqrt()


def _switched(low: Tensor, high: Tensor) -> Tensor:
    """Sums of the low values before each position and of the high values from it on."""
    return low.cumsum(-1) - low + high.flip(-1).cumsum(-1).flip(-1)


def _ordered(scores: Tensor) -> Tensor:
    """The scores in order, between 0 and 1."""
    values = scores.double()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"The bound is of scores in [0, 1], but got {values.min():.4g} to {values.max():.4g}.")
    end = torch.ones_like(values[..., :1])
    return torch.cat([end - 1, values.sort(-1).values, end], -1)


def _log_binomial(n: Tensor, k: Tensor | int) -> Tensor:
    """Logarithm of the number of ways to choose, in float64; NaN-free only where ``0 <= k <= n``."""
    k = torch.as_tensor(k, dtype=torch.float64, device=n.device)
    n = n.double()
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)


def _check_k(samples: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k must be between 1 and the number of samples, {samples}, but got {k}.")


def _check_level(samples: int, alpha: float, most: float) -> None:
    if samples < 1:
        raise ValueError(f"A confidence bound needs at least one sample, but got {samples}.")
    if not 0 < alpha <= most or alpha == 1:
        raise ValueError(f"alpha must be in (0, {most:g}{')' if most == 1 else ']'}, but got {alpha}.")
