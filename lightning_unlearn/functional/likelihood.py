"""Negative log-likelihoods of labels and their means, in fp32: sums of bf16 log-probabilities are too inaccurate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORE_INDEX", "length_normalised", "row_sum", "sequence_nll", "token_mean", "token_nll"]

IGNORE_INDEX = -100
"""Label of a position that is not supervised."""

_CHUNK = 1 << 24  # logits cast to fp32 at a time: 64 MiB


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Negative log-likelihood of each label, :math:`\ell_i = -\log \mathrm{softmax}(z_i)_{y_i}`, in fp32.

    Args:
        logits: Logits :math:`z`, shape ``(N, V)``, any floating type; they are upcast before the softmax.
        labels: Labels :math:`y`, shape ``(N,)``, each in ``[0, V)``; or distributions :math:`t` over the classes, shape
            ``(N, V)``, with :math:`\ell_i = -\sum_k t_{ik} \log \mathrm{softmax}(z_i)_k`.

    Returns:
        Shape ``(N,)``, fp32, in nats.

    Example:
        >>> token_nll(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor([0.4076])
    """
    if logits.numel() <= _CHUNK:
        return F.cross_entropy(logits.float(), labels, reduction="none")
    return _ChunkedNLL.apply(logits, labels)


class _ChunkedNLL(torch.autograd.Function):
    """`token_nll` for large inputs: at no time, forward or backward, does an fp32 copy of all logits exist."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        parts = [_nll(z.float(), y) for z, y in _chunks(logits, labels)]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        parts = []
        rows = gradient.split(_rows_a_chunk(logits))
        for (z, y), g in zip(_chunks(logits, labels), rows, strict=True):
            p = z.float().softmax(-1)
            if y.dim() == 1:
                difference = p.scatter_add(1, y[:, None], -torch.ones_like(y[:, None], dtype=g.dtype))
            else:
                difference = p * y.sum(1, keepdim=True) - y
            parts.append((difference * g[:, None]).to(z.dtype))
        return torch.cat(parts), None


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 2:
        return -(labels * logits.log_softmax(-1)).sum(-1)
    return logits.logsumexp(-1) - logits.gather(1, labels[:, None]).squeeze(1)


def _rows_a_chunk(logits: Tensor) -> int:
    return max(1, _CHUNK // logits.shape[1])


def _chunks(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = _rows_a_chunk(logits)
    return zip(logits.split(size), labels.split(size), strict=True)


def row_sum(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Sum of the values of each row, in a fixed order on every device.

    Args:
        values: Shape ``(N,)``.
        rows: The row that each value belongs to, ascending, shape ``(N,)``, int64.
        size: Number of rows, ``B``.

    Returns:
        Shape ``(B,)``; 0 for a row without values.

    Example:
        >>> row_sum(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 2]), 3)
        tensor([3., 0., 3.])
    """
    return _RowSum.apply(values, rows, size)


class _RowSum(torch.autograd.Function):
    """Row sums by ``segment_reduce``; ``index_add`` sums in an order that changes from run to run on CUDA."""

    @staticmethod
    def forward(values: Tensor, rows: Tensor, size: int) -> Tensor:
        return torch.segment_reduce(values, "sum", lengths=torch.bincount(rows, minlength=size))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, rows, ctx.size = inputs
        ctx.save_for_backward(rows)
        ctx.save_for_forward(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.saved_tensors[0]], None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return row_sum(tangent, ctx.saved_tensors[0], ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], values: Tensor, rows: Tensor, size: int) -> tuple[Tensor, int]:
        def add(values: Tensor, rows: Tensor) -> Tensor:
            return values.new_zeros(size).index_add(0, rows, values)

        return torch.vmap(add, in_dims[:2])(values, rows), 0


def sequence_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sum of token NLLs over each sequence, :math:`S_b`, and the number of its supervised tokens, :math:`n_b`.

    The shift happens here: the logits at position ``t`` predict the label at ``t + 1``.

    Args:
        logits: Shape ``(B, T, V)``.
        labels: Shape ``(B, T)``; ``-100`` for tokens that are not supervised.

    Returns:
        ``S`` of shape ``(B,)`` in nats, fp32, and ``n`` of shape ``(B,)``, fp32.

    Example:
        >>> logits = torch.zeros(1, 3, 4)
        >>> sequence_nll(logits, torch.tensor([[-100, 2, 1]]))
        (tensor([2.7726]), tensor([2.]))
    """
    supervised = labels[:, 1:] != IGNORE_INDEX
    nll = torch.zeros(supervised.shape, dtype=torch.float32, device=logits.device)
    nll = nll.masked_scatter(supervised, token_nll(logits[:, :-1][supervised], labels[:, 1:][supervised]))
    return nll.sum(1), supervised.sum(1).float()


def token_mean(values: Tensor, length: Tensor) -> Tensor:
    r"""Mean per token over a batch, :math:`\sum_b v_b / \sum_b n_b`: longer sequences have more weight.

    Args:
        values: Sums over sequences, shape ``(B,)``.
        length: Supervised tokens of each sequence, shape ``(B,)``.

    Returns:
        A scalar. For sequence NLLs it is the ``loss`` that Hugging Face models return.

    Example:
        >>> token_mean(torch.tensor([2.0794415, 2.0794415]), torch.tensor([2.0, 1.0]))
        tensor(1.3863)
    """
    return values.sum() / length.sum()


def length_normalised(nll: Tensor, length: Tensor) -> Tensor:
    r"""NLL per token of each sequence, :math:`L_b = S_b / \max(n_b, 1)`.

    Args:
        nll: Sequence NLLs :math:`S`, shape ``(B,)``.
        length: Supervised tokens :math:`n`, shape ``(B,)``.

    Returns:
        Shape ``(B,)``, in nats per token.

    Example:
        >>> length_normalised(torch.tensor([2.0, 3.0]), torch.tensor([2.0, 1.0]))
        tensor([1., 3.])
    """
    return nll / length.clamp(min=1)
