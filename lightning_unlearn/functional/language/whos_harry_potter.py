"""Generic predictions of Who's Harry Potter."""

from __future__ import annotations

from torch import Tensor

__all__ = ["whp_labels", "whp_logits"]


def whp_logits(logits: Tensor, reinforced_logits: Tensor, *, alpha: float = 5.0) -> Tensor:
    r"""Logits of a generic prediction: :math:`v_{generic} = v - \alpha\, \mathrm{ReLU}(v_{reinforced} - v)`.

    Tokens become less likely if the reinforced model, trained further on the text to forget, finds them more likely.
    All other logits stay.

    Args:
        logits: Logits of the original model :math:`v`, shape ``(N, V)``, any floating type; they are cast up.
        reinforced_logits: Logits of the reinforced model, shape ``(N, V)``.
        alpha: Strength of the penalty, :math:`\alpha > 0`; 5 in the paper, as we remember it.

    Returns:
        Shape ``(N, V)``, fp32.

    Example:
        >>> import torch
        >>> whp_logits(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[2.5, 0.0, 0.0]]), alpha=5.0)
        tensor([[-0.5000,  1.0000,  0.0000]])

    References:
        Eldan and Russinovich, *Who's Harry Potter? Approximate Unlearning in LLMs*, arXiv:2310.02238.
    """
    logits = logits.float()
    return logits - alpha * (reinforced_logits.float() - logits).relu()


def whp_labels(logits: Tensor, reinforced_logits: Tensor, *, alpha: float = 5.0) -> Tensor:
    r"""The most likely token of the generic prediction at each position, :math:`\arg\max_v v_{generic}`.

    Args:
        logits: Logits of the original model, shape ``(N, V)``.
        reinforced_logits: Logits of the reinforced model, shape ``(N, V)``.
        alpha: As in [`whp_logits`][lightning_unlearn.functional.language.whos_harry_potter.whp_logits].

    Returns:
        Shape ``(N,)``, int64.

    Example:
        >>> import torch
        >>> whp_labels(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[2.5, 0.0, 0.0]]), alpha=5.0)
        tensor([1])

    References:
        Eldan and Russinovich, *Who's Harry Potter? Approximate Unlearning in LLMs*, arXiv:2310.02238.
    """
    return whp_logits(logits, reinforced_logits, alpha=alpha).argmax(-1)
