"""Soft prompt attack: gradient descent on token embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["AttackNorm", "AttackRule", "project", "soft_prompt_attack"]

AttackRule = Literal["adam", "sign", "normalized"]
AttackNorm = Literal["linf", "l2"]

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8  # defaults of Adam


def soft_prompt_attack(
    loss: Callable[[Tensor, int], Tensor],
    init: Tensor,
    steps: int,
    step_size: float,
    rule: AttackRule = "adam",
    radius: float | None = None,
    norm: AttackNorm = "linf",
    probe: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Lower a loss by moving soft tokens: $\delta \leftarrow \Pi_r\big(\delta - \alpha\, d(\nabla_\delta \ell)\big)$.

    The direction $d$ is that of Adam (the authors' "pgd"), the gradient's sign (a step of FGSM and PGD), or the
    normalized gradient. $\Pi_r$ projects onto the ball around the initial tokens. Each step uses only its own gradient,
    and the last step counts: even a single step moves the tokens. The authors' code never clears the gradients of its
    optimizer, so it steps along their sum, and drops the last step. No other gradient is changed, and no random number
    is drawn.

    Args:
        loss: ``loss(delta, step)``, with ``step`` starting at 0: a scalar, or one value per row, shape ``(B,)``. In the
            latter case rows are independent of one another.
        init: Initial tokens, rows first, such as ``(B, k, D)``.
        steps: Number of steps; 0 returns the initial tokens.
        step_size: $\alpha > 0$; with ``"sign"`` the change of each number, with ``"normalized"`` the norm of a row's
            change.
        rule: ``"adam"``, ``"sign"`` or ``"normalized"``.
        radius: Radius $r \ge 0$ of the ball; by default there is none, as in the authors' code.
        norm: Norm of the ball: ``"linf"``, for each number; ``"l2"``, for each row.
        probe: A loss on fixed draws, of the shape of ``loss``. If each step has its own draws, the last tokens need
            not be the best: with a probe, the tokens with the lowest value are returned, which may be the initial ones.
            It is called once more than there are steps.

    Returns:
        The tokens after the last step, or the best by the probe, shape of ``init``, fp32, without gradient.

    Raises:
        ValueError: If an argument is out of range, or the loss does not depend on the tokens.

    Example:
        >>> one = soft_prompt_attack(lambda d, step: (d - 3).square().sum(), torch.zeros(1, 1, 2), 1, 0.5, "sign")
        >>> one
        tensor([[[0.5000, 0.5000]]])

    References:
        Zhang et al., *Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models*,
        arXiv:2405.15234; Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*,
        arXiv:1706.06083.
    """
    _check(steps, step_size, rule, radius, norm)
    # Tensors made in inference mode can't carry gradients, and validation runs in that mode.
    with torch.inference_mode(False), torch.enable_grad():
        start = init.detach().clone().float()
        delta, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        best, lowest = delta, _probed(probe, delta)
        for step in range(steps):
            delta.requires_grad_()
            value = loss(delta, step).float().sum()
            gradient = torch.autograd.grad(value, delta, allow_unused=True)[0] if value.requires_grad else None
            if gradient is None:
                raise ValueError("The loss does not depend on the soft tokens, so there is nothing to attack with.")
            delta = delta.detach()
            if rule == "adam":
                first = _BETA_1 * first + (1 - _BETA_1) * gradient
                second = _BETA_2 * second + (1 - _BETA_2) * gradient.square()
                mean, spread = first / (1 - _BETA_1 ** (step + 1)), second / (1 - _BETA_2 ** (step + 1))
                direction = mean / (spread.sqrt() + _EPS)
            elif rule == "sign":
                direction = gradient.sign()
            else:
                direction = gradient / _row_norm(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
            delta = delta - step_size * direction
            if radius is not None:
                delta = project(delta, start, radius, norm)
            if probe is not None:
                probed = _probed(probe, delta)
                better = probed < lowest
                lowest = torch.where(better, probed, lowest)
                best = torch.where(better.reshape(better.shape + (1,) * (delta.dim() - better.dim())), delta, best)
    return delta if probe is None else best


def project(delta: Tensor, center: Tensor, radius: float, norm: AttackNorm = "linf") -> Tensor:
    """The nearest point in a ball.

    Args:
        delta: Rows first, shape ``(B, ...)``.
        center: Center of each row's ball, same shape.
        radius: Radius of the balls.
        norm: ``"linf"``, the largest absolute value; ``"l2"``, the norm of a row.

    Returns:
        Shape ``(B, ...)``.

    Example:
        >>> project(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0, "l2")
        tensor([[0.6000, 0.8000]])
    """
    offset = delta - center
    if norm == "linf":
        return center + offset.clamp(-radius, radius)
    return center + offset * (radius / _row_norm(offset).clamp_min(torch.finfo(offset.dtype).tiny)).clamp_max(1.0)


def _check(steps: int, step_size: float, rule: str = "adam", radius: float | None = None, norm: str = "linf") -> None:
    """Reject settings of an attack that are out of range."""
    if steps < 0:
        raise ValueError(f"The attack's steps must be at least 0, but got {steps}.")
    if not step_size > 0:
        raise ValueError(f"The attack's step size must be positive, but got {step_size}.")
    if rule not in ("adam", "sign", "normalized"):
        raise ValueError(f"The attack's rule must be 'adam', 'sign' or 'normalized', but got {rule!r}.")
    if radius is not None and not radius >= 0:
        raise ValueError(f"The attack's radius must be at least 0, or None for no ball, but got {radius}.")
    if norm not in ("linf", "l2"):
        raise ValueError(f"The attack's norm must be 'linf' or 'l2', but got {norm!r}.")


def _row_norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))


@torch.no_grad()
def _probed(probe: Callable[[Tensor], Tensor] | None, delta: Tensor) -> Tensor:
    return delta.new_tensor(torch.inf) if probe is None else probe(delta).detach().float()
