"""Smoothing by a penalty on the norm of the forget term's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.gradients import refuse_reentrant_checkpoints
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.functional.smoothing.gradient_penalty import gradient_penalty, inner_product, unit_vector
from lightning_unlearn.smoothing.forget_term import Evaluation, ForgetTerm, Gradients
from lightning_unlearn.smoothing.hessian import (
    Derivative,
    added,
    check_derivative,
    check_resolution,
    filled,
    hessian_product,
    mean_gradient,
    twice_differentiable,
)
from lightning_unlearn.smoothing.strategy import Smoothed, SmoothingStrategy

__all__ = ["GradientPenalty"]


class GradientPenalty(SmoothingStrategy):
    r"""Penalizes the norm of the forget term's gradient, so that small relearning steps gain little.

    $$\mathcal{L}_f(\theta) + c\, \|\nabla \mathcal{L}_f(\theta)\|_2, \qquad
    \nabla\big(\dots\big) = g + c\, H v, \quad g = \nabla \mathcal{L}_f(\theta), \quad v = g / \|g\|_2$$

    The norm is over all weights that train, for the gradient over all processes. The forget term includes its weight,
    so $c$ is relative to the term. $Hv$ comes from a second backward pass, or from the gradients at $\theta \pm h v$. A
    step costs one forward and backward pass over the forget rows with a second backward pass through both; with finite
    differences, three forward and backward passes.

    This is the paper's equation. The released code adds the norm as a number, which has no gradient, and ignores its
    coefficient: what is published as this method is plain NPO.

    Logs ``smooth/grad_norm``, $\|g\|_2$, and ``smooth/penalty``, $c\, \|g\|_2$.

    Args:
        coef: Weight of the penalty $c \ge 0$; 0 is the run without it.
        mode: ``"double_backward"``, exact and with more memory; or ``"finite_difference"``, with no more memory than a
            step and a copy of the weights, also on sharded weights (FSDP2) and with kernels that have no second
            derivative. Weights have to be in fp32 for it.

    Raises:
        ValueError: If ``coef`` is negative or there is no such mode.
        MisconfigurationException: With ``"double_backward"`` on sharded weights or ``precision="16-mixed"``, with
            ``"finite_difference"`` on weights in half precision.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import NPO
        >>> trainer = Trainer(callbacks=[NPO(), GradientPenalty(coef=0.01)], logger=False, accelerator="cpu")

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization Perspective
        and Beyond*, arXiv:2502.05374.
    """

    def __init__(self, coef: float = 0.01, mode: Derivative = "double_backward") -> None:
        self.coef, self.mode = at_least("coef", coef, 0), one_of("mode", mode, Derivative)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_derivative("GradientPenalty", self.mode, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the precision of the weights."""
        super().on_train_start(trainer, pl_module)
        if self.mode == "finite_difference":
            check_resolution("GradientPenalty", pl_module, ", or use mode='double_backward'")

    def smooth(self, term: ForgetTerm) -> Smoothed:
        """The term and its penalty on one batch."""
        if self.coef and self.mode == "double_backward":
            here, mean, product = self._twice(term)
        else:
            here = term.gradient()
            mean = mean_gradient(term, here.gradients)
            product = hessian_product(term, unit_vector(mean), self.mode) if self.coef else mean
        norm = inner_product(mean, mean).sqrt()
        gradients = added(here.gradients, product, self.coef) if self.coef else here.gradients
        logged = {"grad_norm": norm, "penalty": self.coef * norm}
        return Smoothed(here.value + self.coef * norm, gradients, here.parts, logged)

    def _twice(self, term: ForgetTerm) -> tuple[Evaluation, list[Tensor], list[Tensor]]:
        """The term, its mean gradient and the product, from one forward pass."""
        with twice_differentiable(), term.graph() as (loss, parts), torch.autocast(loss.device.type, enabled=False):
            first = torch.autograd.grad(loss, term.parameters, create_graph=True, allow_unused=True)
            if any(g is None for g in first):
                refuse_reentrant_checkpoints(loss)
            here = Evaluation(loss.detach(), [None if g is None else g.detach() for g in first], parts)
            mean = mean_gradient(term, here.gradients)
            pairs = [(g, v) for g, v in zip(first, unit_vector(mean), strict=True) if g is not None]
            second: Gradients = [None] * len(first)
            if any(g.requires_grad for g, _ in pairs):  # not where the loss is linear in the weights
                penalty = gradient_penalty([g for g, _ in pairs], [v for _, v in pairs])
                second = term.gradient_of(penalty)
        return here, mean, filled(term, second)
