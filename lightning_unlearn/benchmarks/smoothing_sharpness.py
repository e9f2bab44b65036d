"""Sharpness of the forget loss around an unlearned model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import evaluation_mode

__all__ = ["sharpness"]


def sharpness(
    module: LightningModule, forget_nll: Callable[[LightningModule], Tensor], radius: float = 0.01, steps: int = 10
) -> float:
    r"""How much the log-likelihood of the forget rows rises at most within a small change of the weights.

    $$\max_{\lVert\delta\rVert_2 \le r} \mathcal{L}_f(\theta + \delta) - \mathcal{L}_f(\theta),
    \qquad \mathcal{L}_f = -\mathrm{NLL}$$

    One norm over all trainable weights. The maximum is searched by projected gradient ascent from $\theta$, each step a
    fourth of the radius long, so it is a lower bound; the best point of the search counts. The weights are restored.

    Args:
        module: The model.
        forget_nll: Mean negative log-likelihood of the forget rows, a scalar with its graph.
        radius: Radius of the ball $r$.
        steps: Steps of the search.

    Returns:
        The rise, in nats; at least 0.

    Raises:
        ValueError: If a number is out of range.

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, arXiv:2502.05374.
    """
    above("radius", radius, 0)
    at_least("steps", steps, 1)
    weights = [p for p in module.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in weights]
    shift = [torch.zeros_like(p) for p in weights]
    losses: list[float] = []
    try:
        with torch.enable_grad(), evaluation_mode(module):
            for _ in range(steps):
                loss = -forget_nll(module)
                losses.append(float(loss.detach()))
                gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
                length = max(_norm(gradients), 1e-30)
                for d, g in zip(shift, gradients, strict=True):
                    d.add_(g, alpha=radius / 4 / length)
                scale = min(1.0, radius / max(_norm(shift), 1e-30))
                with torch.no_grad():
                    for p, start, d in zip(weights, kept, shift, strict=True):
                        p.copy_(start + d.mul_(scale))
            losses.append(-float(forget_nll(module).detach()))
    finally:
        with torch.no_grad():
            for p, start in zip(weights, kept, strict=True):
                p.copy_(start)
    return max(losses) - losses[0]


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> float:
    return float(torch.stack([t.float().norm() for t in tensors]).norm())
