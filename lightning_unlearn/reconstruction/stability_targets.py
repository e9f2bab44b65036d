"""Targets of the unrolled stability loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_unlearn.core.modes import evaluation_mode
from lightning_unlearn.reconstruction.operators import LinearOperator
from lightning_unlearn.reconstruction.smoothed import Smoothed
from lightning_unlearn.reconstruction.unrolled import UnrolledNetwork

__all__ = ["StabilityTarget", "after_data_consistency", "end_to_end_target", "step_targets"]

StabilityTarget = Literal["label_denoised", "label", "self", "frozen"]


def step_targets(
    kind: StabilityTarget,
    network: UnrolledNetwork,
    reference: UnrolledNetwork | None,
    found: Smoothed,
    target: Tensor,
) -> list[Tensor]:
    r"""The target $t_n$ of each step's denoiser.

    Args:
        kind: ``"label_denoised"``: $D_\theta(t)$, with gradient; ``"label"``: $t$; ``"self"``: $D_\theta(x_n)$ without
            noise, with gradient; ``"frozen"``: $D_{\theta_0}(x_n)$, a constant.
        network: The network $\theta$.
        reference: The network $\theta_0$ before training, for ``"frozen"``.
        found: A smoothed reconstruction.
        target: The images $t$. Shape (B, H, W).

    Returns:
        One target per step, shape (B, H, W).
    """
    steps = range(len(found.states))
    if kind == "label":
        return [target for _ in steps]
    if kind == "self":
        return [network.denoise(state, step) for step, state in enumerate(found.states)]
    if kind == "frozen":
        assert reference is not None
        with torch.no_grad(), evaluation_mode(reference):
            return [reference.denoise(state, step) for step, state in enumerate(found.states)]
    if type(network).denoise is UnrolledNetwork.denoise:  # one denoiser for all steps
        denoised = network.denoise(target, 0)
        return [denoised for _ in steps]
    return [network.denoise(target, step) for step in steps]


def after_data_consistency(
    targets: list[Tensor], network: UnrolledNetwork, operator: LinearOperator, kspace: Tensor
) -> list[Tensor]:
    r"""Targets of whole steps from targets of the denoiser, $Q^{-1}(z + \lambda t_n)$, for ``"smug_v0"``."""
    start = operator.A_adjoint(kspace)
    return [network.update(operator, start, target, step) for step, target in enumerate(targets)]


def end_to_end_target(
    kind: StabilityTarget, reference: UnrolledNetwork | None, operator: LinearOperator, kspace: Tensor, target: Tensor
) -> Tensor:
    r"""The target of whole reconstructions from noisy measurements.

    Args:
        kind: ``"label"``: $t$; ``"frozen"``: $R_{\theta_0}(y)$ of the clean measurements, as in the first version of
            SMUG.
        reference: The network $\theta_0$ before training, for ``"frozen"``.
        operator: The measurements' operator.
        kspace: The measurements $y$.
        target: The images $t$. Shape (B, H, W).
    """
    if kind == "label":
        return target
    assert reference is not None
    with torch.no_grad(), evaluation_mode(reference):
        return reference(operator, kspace).image
