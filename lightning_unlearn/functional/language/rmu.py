"""Representation misdirection."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["control_vector", "mean_norm", "rmu_forget", "rmu_retain"]


def control_vector(size: int, steering: float, seed: int) -> Tensor:
    r"""The target of the forget activations, :math:`c \cdot u / \lVert u \rVert_2` with :math:`u \sim U[0, 1)^d`.

    Drawn from its own generator, so it is the same on every process and independent of the global one. No entry is
    negative, as in the paper and its code.

    Args:
        size: Width of the activations :math:`d`.
        steering: Length of the vector :math:`c`.
        seed: Seed of the draw.

    Returns:
        Shape ``(d,)``, fp32, on the CPU.

    Example:
        >>> control_vector(3, steering=2.0, seed=0)
        tensor([1.0802, 1.6722, 0.1926])

    References:
        Li et al., *The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning*, arXiv:2403.03218.
    """
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return steering * direction / direction.norm()


def mean_norm(hidden: Tensor, mask: Tensor) -> Tensor:
    r"""Mean length of the activations of each sequence: :math:`\frac{1}{n_b} \sum_t \lVert h_t \rVert_2`.

    Adaptive RMU sets the length of its control vector to a multiple of this, on the original model.

    Args:
        hidden: Activations :math:`h`, shape ``(B, T, d)``, any floating type.
        mask: Shape ``(B, T)``; 0 where a position does not count.

    Returns:
        Shape ``(B,)``, fp32; 0 for a row without a position that counts.

    Example:
        >>> mean_norm(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]), torch.ones(1, 2))
        tensor([3.])

    References:
        Huu-Tien et al., *On Effects of Steering Latent Representation for Large Language Model Unlearning*,
        arXiv:2408.06223.
    """
    return _mean(hidden.float().norm(dim=-1), mask)


def rmu_forget(hidden: Tensor, control: Tensor, mask: Tensor) -> Tensor:
    r"""Forget term per sequence: :math:`\frac{1}{n_b d} \sum_t \lVert h_t - c u \rVert_2^2`.

    A mean over tokens and over the width :math:`d`, as in the released code. The paper writes a sum over the width,
    which is :math:`d` times this in both terms: the retain weight stays the same, the learning rate does not.

    Args:
        hidden: Activations :math:`h`, shape ``(B, T, d)``, any floating type.
        control: Control vector :math:`c u`, shape ``(d,)``.
        mask: Shape ``(B, T)``; 0 where a position does not count.

    Returns:
        Shape ``(B,)``, fp32; 0 for a row without a position that counts.

    Example:
        >>> control = 2 * torch.tensor([0.2, 0.4, 0.4, 0.8])
        >>> rmu_forget(torch.tensor([[[1.0, 0, 0, 0]], [[0, 0, 0, 2.0]]]), control, torch.ones(2, 1))
        tensor([1.0500, 0.4000])

    References:
        Li et al., *The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning*, arXiv:2403.03218.
    """
    return _mean_square(hidden.float() - control.float(), mask)


def rmu_retain(hidden: Tensor, reference_hidden: Tensor, mask: Tensor) -> Tensor:
    r"""Retain term per sequence: :math:`\frac{1}{n_b d} \sum_t \lVert h_t - h_{ref,t} \rVert_2^2`.

    A mean over tokens and over the width, where the paper sums over the width. Value and gradient are zero where the
    two agree.

    Args:
        hidden: Activations :math:`h`, shape ``(B, T, d)``, any floating type.
        reference_hidden: Activations of the frozen original model :math:`h_{ref}`, shape ``(B, T, d)``.
        mask: Shape ``(B, T)``; 0 where a position does not count.

    Returns:
        Shape ``(B,)``, fp32; 0 for a row without a position that counts.

    Example:
        >>> rmu_retain(torch.ones(1, 2, 4), torch.zeros(1, 2, 4), torch.tensor([[1, 0]]))
        tensor([1.])

    References:
        Li et al., *The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning*, arXiv:2403.03218.
    """
    return _mean_square(hidden.float() - reference_hidden.float(), mask)


def _mean_square(difference: Tensor, mask: Tensor) -> Tensor:
    return _mean(difference.square().mean(-1), mask)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    mask = mask.to(values.dtype)
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
