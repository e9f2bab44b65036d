"""Label differential privacy of negative label smoothing."""

from __future__ import annotations

import math

__all__ = ["label_privacy"]


def label_privacy(alpha: float, ratio: float, classes: int) -> float:
    r"""The paper's bound :math:`\varepsilon` on label differential privacy for ascent with negative smoothing.

    .. math:: \varepsilon = \Big|\log\big(\tfrac{K}{\alpha}(1 - \tfrac{\gamma_1}{\gamma_2}) + 1 - K\big)\Big|

    Args:
        alpha: Smoothing rate :math:`\alpha < 0`.
        ratio: :math:`\gamma_1 / \gamma_2`, the ratio of the weights of the two terms.
        classes: Number of classes :math:`K`.

    Returns:
        :math:`\varepsilon \ge 0`; 0 at :math:`\alpha = 1 - \gamma_1 / \gamma_2`.

    Raises:
        ValueError: If the rate is not negative, or the logarithm is undefined at this rate.

    Example:
        >>> label_privacy(-0.5, 1.5, 10)
        0.0

    References:
        Di et al., *Label Smoothing Improves Machine Unlearning*, arXiv:2406.07698.
    """
    if not alpha < 0:
        raise ValueError(f"alpha must be less than 0, but got {alpha}: the bound is for negative label smoothing.")
    argument = classes / alpha * (1 - ratio) + 1 - classes
    if not argument > 0:
        raise ValueError(
            f"There is no bound at alpha={alpha}, ratio={ratio}, classes={classes}: the logarithm's argument is "
            f"{argument:.6g}. Choose alpha nearer to 0, above {classes * (1 - ratio) / (classes - 1):.6g}."
        )
    return abs(math.log(argument))
