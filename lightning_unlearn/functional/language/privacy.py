"""Privacy scores of an unlearned model, relative to the membership attack on a retrained one."""

from __future__ import annotations

from typing import Literal

__all__ = ["priv_leak", "s_mia"]

Convention = Literal["ou", "muse"]


def priv_leak(unlearned: float, retrained: float = 0.5, convention: Convention = "ou", epsilon: float = 1e-10) -> float:
    r"""PrivLeak in percent, :math:`100\,\frac{A_u - A_r}{A_r + \epsilon}`.

    :math:`A` is the share of pairs in which the forget row has the *larger* loss-like score, as MUSE computes the area.
    open-unlearning's areas are its complement, :math:`1 - A`: 1 means that forget rows are still recognised.

    Args:
        unlearned: Area of the membership attack on the unlearned model, in [0, 1].
        retrained: The same of the retrained model. Where there is none, 0.5 is customary: it is right only if forget
            and holdout rows are drawn from one distribution.
        convention: Which of the two areas is given: ``"ou"`` (open-unlearning) or ``"muse"``.
        epsilon: Added to the denominator, as open-unlearning does.

    Returns:
        0 is ideal; negative where the rows are less forgotten than by retraining, positive where more. It has no upper
        bound.

    Raises:
        ValueError: If an area is outside [0, 1], the convention is unknown, or the denominator is 0.

    Example:
        >>> round(priv_leak(0.9991, 0.5236), 4)
        -99.8111

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, arXiv:2407.06460.
    """
    for area in (unlearned, retrained):
        if not 0 <= area <= 1:
            raise ValueError(f"An area under the ROC curve is in [0, 1], but got {area}.")
    if convention not in ("ou", "muse"):
        raise ValueError(f"convention must be 'ou' or 'muse', but got {convention!r}.")
    if convention == "ou":
        unlearned, retrained = 1 - unlearned, 1 - retrained
    if retrained + epsilon == 0:
        raise ValueError(
            "PrivLeak divides by the retrained model's area, which is 0 here: it tells forget rows from all others "
            "without having seen them. Use another holdout set."
        )
    return 100 * (unlearned - retrained) / (retrained + epsilon)


def s_mia(unlearned: float, retrained: float) -> float:
    r"""Closeness of the attack's area to the retrained model's, :math:`\mathrm{clip}(1 - |A_u - A_r| / A_r, 0, 1)`.

    Args:
        unlearned: Area of the membership attack on the unlearned model, of either convention.
        retrained: The same of the retrained model, above 0.

    Returns:
        In [0, 1]; 1, equal to the retrained model, is good.

    Raises:
        ValueError: If the retrained model's area is 0.

    Example:
        >>> s_mia(0.6, 0.5)
        0.8

    References:
        Dorna et al., *OpenUnlearning*, arXiv:2506.12618.
    """
    if not retrained > 0:
        raise ValueError(f"s_mia divides by the retrained model's area, which is {retrained}. Use another holdout set.")
    return min(1.0, max(0.0, 1 - abs(unlearned - retrained) / retrained))
