"""Gradient ascent on the forget set."""

from __future__ import annotations

from torch import Tensor

__all__ = ["gradient_ascent"]


def gradient_ascent(nll: Tensor) -> Tensor:
    r"""Gradient ascent per sequence: :math:`-S_b`.

    It is unbounded below: in a long run, it destroys the model. Reduce it with
    [`token_mean`][lightning_unlearn.functional.likelihood.token_mean] as TOFU does.

    Args:
        nll: Sequence NLLs of the forget answers :math:`S`, shape ``(B,)``.

    Returns:
        Shape ``(B,)``.

    Example:
        >>> import torch
        >>> gradient_ascent(torch.tensor([2.0, 3.0]))
        tensor([-2., -3.])

    References:
        Jang et al., *Knowledge Unlearning for Mitigating Privacy Risks in Language Models*, arXiv:2210.01504.
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """
    return -nll
