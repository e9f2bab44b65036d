"""Weight attribution of WAGLE."""

from __future__ import annotations

from torch import Tensor

__all__ = ["wagle_score"]


def wagle_score(
    theta: Tensor, forget_grad: Tensor, retain_grad: Tensor, gamma: float = 1e-6, include_magnitude_term: bool = True
) -> Tensor:
    r"""Importance of a weight for forgetting, given that the model re-adapts to the retain rows without it.

    :math:`S_i = \big| (\theta_i - g_{r,i} / \gamma)\, g_{f,i} \big|`. This is the first-order effect on the forget loss
    of setting weight :math:`i` to zero, with the Hessian of the retain loss approximated by :math:`\gamma I`. As
    :math:`\gamma \to \infty` it is SNIP on the forget loss; as :math:`\gamma \to 0` it ranks by :math:`|g_r g_f|`.

    The first term remains because the derivation drops a cross term that would cancel it exactly: without that
    approximation, only the interaction :math:`|g_{r,i}\, g_{f,i}| / \gamma` is left.

    Args:
        theta: Weights :math:`\theta` of the original model.
        forget_grad: Gradient :math:`g_f` of the mean NLL of the forget rows, same shape. Its sign and scale don't
            affect the ranking.
        retain_grad: Gradient :math:`g_r` of the mean NLL of the retain rows, same shape.
        gamma: Curvature :math:`\gamma > 0` of the retain loss.
        include_magnitude_term: Whether the formula includes :math:`\theta_i`.

    Returns:
        Non-negative scores of the same shape.

    Example:
        >>> import torch
        >>> theta, g_f = torch.tensor([2.0, -1.0, 0.5, 0.1]), torch.tensor([1.0, 0.5, -2.0, 3.0])
        >>> wagle_score(theta, g_f, torch.tensor([0.1, -0.2, 0.4, 0.0]), gamma=1.0)
        tensor([1.9000, 0.4000, 0.2000, 0.3000])

    References:
        Jia et al., *WAGLE: Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models*,
        arXiv:2410.17509. The formula is that of the released code (``snip_advanced``).
    """
    interaction = retain_grad / gamma
    weight = theta - interaction if include_magnitude_term else interaction
    return (weight * forget_grad).abs()
