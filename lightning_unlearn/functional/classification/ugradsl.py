"""Mixed objective of UGradSL."""

from __future__ import annotations

from torch import Tensor

__all__ = ["ugradsl"]


def ugradsl(retain_loss: Tensor, forget_loss: Tensor, *, p: float) -> Tensor:
    r"""Descent on the retain rows and ascent on the smoothed loss of the forget rows.

    .. math:: \mathcal{L} = p\, \ell_r - (1 - p)\, \ell_{GLS,f}

    Without smoothing it is NegGrad+; :math:`p = 0` is gradient ascent and :math:`p = 1` is fine-tuning.

    Args:
        retain_loss: Cross-entropy of the retain rows :math:`\ell_r`, a scalar.
        forget_loss: Smoothed cross-entropy of the forget rows :math:`\ell_{GLS,f}`, a scalar.
        p: Weight of the retain rows, in [0, 1].

    Returns:
        A scalar, unbounded below unless :math:`p = 1`.

    Example:
        >>> import torch
        >>> ugradsl(torch.tensor(0.4), torch.tensor(0.1), p=0.5)
        tensor(0.1500)

    References:
        Di et al., *Label Smoothing Improves Machine Unlearning*, arXiv:2406.07698.
    """
    return p * retain_loss - (1 - p) * forget_loss
