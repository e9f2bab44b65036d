"""Statistics of next-token distributions at supervised positions, without a copy of all logits in fp32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TokenStatistics", "token_statistics"]

_CHUNK = 1 << 16  # logits at a time: 256 KiB in fp32, which stay in the cache of a core
_CHUNK_CUDA = 1 << 24
_LEAST = -1e4  # log-probability below which p log p is 0 in every floating type


class TokenStatistics(NamedTuple):
    """Statistics of positions, each of shape ``(P,)``.

    Args:
        log_prob: Log-probability of the label, in nats.
        mean: Mean log-probability under the distribution itself, its negative entropy.
        variance: Variance of the log-probability under the distribution itself.
        hit: Whether the label is the most likely token; of equal ones the first.
    """

    log_prob: Tensor
    mean: Tensor
    variance: Tensor
    hit: Tensor


def token_statistics(logits: Tensor, labels: Tensor) -> TokenStatistics:
    r"""Statistics that likelihood, memorisation and membership metrics use, from one pass over the logits.

    With :math:`\ell_v = \log \mathrm{softmax}(z)_v` and :math:`p_v = e^{\ell_v}`:

    .. math:: \text{log\_prob} = \ell_y, \quad \mu = \sum_v p_v \ell_v, \quad \sigma^2 = \sum_v p_v (\ell_v - \mu)^2

    Args:
        logits: Logits :math:`z`, shape ``(P, V)``, of any floating type. They are cast up to fp32 a few positions at a
            time.
        labels: Labels :math:`y`, shape ``(P,)``, each in ``[0, V)``.

    Returns:
        Four tensors of shape ``(P,)``, in fp32, or fp64 for such logits.

    Example:
        >>> p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
        >>> token_statistics(p.log(), torch.tensor([1]))[1:3]
        (tensor([-1.0397], dtype=torch.float64), tensor([0.1201], dtype=torch.float64))

    References:
        Zhang et al., Min-K%++, arXiv:2404.02936, for the mean and the variance.
    """
    size = max(1, (_CHUNK_CUDA if logits.is_cuda else _CHUNK) // logits.shape[1])
    chunks = zip(logits.split(size), labels.split(size), strict=True)
    parts = [_statistics(z, y) for z, y in chunks]
    return TokenStatistics(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _statistics(logits: Tensor, labels: Tensor) -> TokenStatistics:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_p = logits.log_softmax(-1)
    log_prob = log_p.gather(1, labels[:, None]).squeeze(1)
    p = log_p.exp()
    log_p = log_p.clamp(min=_LEAST)  # 0 times -inf, where a model masks tokens
    mean = (p * log_p).sum(-1)
    variance = (p * (log_p - mean[:, None]).square()).sum(-1)
    return TokenStatistics(log_prob, mean, variance, logits.argmax(-1) == labels)
