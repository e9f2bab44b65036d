"""Decaying weight of the L1 penalty of l1-sparse."""

from __future__ import annotations

__all__ = ["l1_weight"]


def l1_weight(gamma: float, epoch: int, epochs: int, *, no_l1_epochs: int = 0) -> float:
    r"""Linear decay to 0, which is reached at the last :math:`E_0` epochs.

    .. math:: \gamma_e = \gamma \big(1 - \tfrac{e}{E - E_0}\big) \quad \text{for } e < E - E_0, \text{ then } 0

    Args:
        gamma: Weight in the first epoch :math:`\gamma`.
        epoch: The epoch :math:`e`, from 0.
        epochs: Epochs of the run :math:`E`.
        no_l1_epochs: Number of epochs without penalty at the end, :math:`E_0`. If it equals :math:`E`, the weight stays
            at :math:`\gamma`, as in the released code.

    Returns:
        The weight in the epoch.

    Example:
        >>> [l1_weight(5e-4, epoch, 10) for epoch in (0, 5, 9)]
        [0.0005, 0.00025, 5e-05]

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """
    decays = epochs - no_l1_epochs
    if decays == 0:
        return gamma
    return gamma * (decays - epoch) / decays if epoch < decays else 0.0
