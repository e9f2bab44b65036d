"""Label sampling for the Gauss-Newton-Bartlett estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.functional.random import mixed_bits

__all__ = ["sample_labels"]

_CHUNK = 1 << 24  # logits processed at a time, so that a large vocabulary does not need a second copy of all of them


@torch.no_grad()
def sample_labels(logits: Tensor, position: Tensor, *, seed: int = 0) -> Tensor:
    r"""Draw a label from the softmax at each position: :math:`\hat y_i \sim \mathrm{softmax}(z_i)`, in fp32.

    The square of the mean gradient under such labels, times the number of positions :math:`B`, is an unbiased estimate
    of the diagonal of the Gauss-Newton matrix. The draw depends only on (seed, position): it uses no generator state,
    and positions get the same labels whether they are spread over processes or micro-batches, or read together.

    Args:
        logits: Shape ``(N, V)``.
        position: A unique number for each position, shape ``(N,)``, int64.
        seed: Seed of the draw.

    Returns:
        Shape ``(N,)``, int64.

    Example:
        >>> import torch
        >>> sample_labels(torch.tensor([[0.0, 99.0, 0.0], [99.0, 0.0, 0.0]]), torch.arange(2))
        tensor([1, 0])

    References:
        Liu et al., *Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training*,
        arXiv:2305.14342, Algorithm 2.
    """
    size = max(1, _CHUNK // logits.shape[-1])
    labels = torch.empty_like(position)
    for some, z, number in zip(labels.split(size), logits.split(size), position.split(size), strict=True):
        mass = torch.softmax(z.float(), dim=-1).cumsum(-1)
        uniform = (mixed_bits(number, seed) & 0xFFFFFF).float() / (1 << 24)
        threshold = uniform.unsqueeze(1) * mass[:, -1:]
        some.copy_(torch.searchsorted(mass, threshold, right=True).squeeze(1))
    return labels.clamp_(max=logits.shape[-1] - 1)
