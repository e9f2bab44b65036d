"""From logits to likelihoods and their means, always in fp32: a sum of bf16 log-probabilities is useless."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORE_INDEX", "length_normalised", "sequence_nll", "token_mean", "token_nll"]

IGNORE_INDEX = -100
"""Label of a position that is not supervised."""


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Negative log-likelihood of each label, :math:`\ell_i = -\log \mathrm{softmax}(z_i)_{y_i}`, in fp32.

    Args:
        logits: Logits :math:`z`, shape ``(N, V)``, any floating type; they are cast up before the softmax.
        labels: Labels :math:`y`, shape ``(N,)``, each in ``[0, V)``.

    Returns:
        Shape ``(N,)``, fp32, in nats.

    Example:
        >>> token_nll(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor([0.4076])
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def sequence_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sum of token NLLs over each sequence :math:`S_b`, and the number of its supervised tokens :math:`n_b`.

    The shift happens here: the logits at position ``t`` predict the label at ``t + 1``.

    Args:
        logits: Shape ``(B, T, V)``.
        labels: Shape ``(B, T)``; ``-100`` where a token is not supervised.

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
    r"""Mean per token over a batch, :math:`\sum_b v_b / \sum_b n_b`: long sequences weigh more.

    Args:
        values: Sums over sequences, shape ``(B,)``.
        length: Supervised tokens of each sequence, shape ``(B,)``.

    Returns:
        A scalar. With ``values`` the sequence NLLs it is what Hugging Face models return as ``loss``.

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
