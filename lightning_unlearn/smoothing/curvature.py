"""Smoothing by a penalty on the curvature of the forget term along its gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.functional.smoothing.curvature import curvature_penalty, curvature_penalty_gradient
from lightning_unlearn.functional.smoothing.gradient_penalty import inner_product, unit_vector
from lightning_unlearn.smoothing.forget_term import ForgetTerm
from lightning_unlearn.smoothing.hessian import (
    Derivative,
    added,
    check_derivative,
    check_resolution,
    hessian_product,
    mean_gradient,
)
from lightning_unlearn.smoothing.strategy import Smoothed, SmoothingStrategy

__all__ = ["CurvatureRegularization"]


class CurvatureRegularization(SmoothingStrategy):
    r"""Penalizes the change of the forget term's gradient over a short step along it.

    $$\mathcal{L}_f(\theta) + c\, \|\nabla \mathcal{L}_f(\theta + \mu v) - \nabla \mathcal{L}_f(\theta)\|_2, \qquad
    v = \frac{\nabla \mathcal{L}_f(\theta)}{\|\nabla \mathcal{L}_f(\theta)\|_2}$$

    Norms are those of all weights that train, and gradients those of all processes. The gradient of the penalty takes
    two products with Hessians: see
    [`curvature_penalty_gradient`][lightning_unlearn.functional.smoothing.curvature.curvature_penalty_gradient]. A step
    costs four forward and backward passes over the forget rows, two of them differentiated twice; with finite
    differences, six.

    This is the paper's equation. The released code adds the norm as a number, which has no gradient, and takes the
    gradient of the term twice.

    Logs ``smooth/grad_norm``, ``smooth/curvature`` (the norm in the penalty), ``smooth/perturbed_loss``, the term at
    $\theta + \mu v$, and ``smooth/sharpness``, by how much it is larger than at $\theta$.

    Args:
        coef: Weight of the penalty $c \ge 0$; 0 is the run without it.
        mu: Length of the step $\mu > 0$.
        mode: ``"double_backward"`` or ``"finite_difference"``, as in
            [`GradientPenalty`][lightning_unlearn.GradientPenalty].
        detach: Whether $v$ is held constant, as is usual. ``False`` takes the whole gradient, at no cost: it has a term
            that grows without bound as the gradient vanishes, so clip gradients.

    Raises:
        ValueError: If a number is out of range or there is no such mode.
        MisconfigurationException: On weights in half precision; with ``"double_backward"`` on sharded weights or
            ``precision="16-mixed"``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import NPO
        >>> trainer = Trainer(callbacks=[NPO(), CurvatureRegularization()], logger=False, accelerator="cpu")

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization Perspective
        and Beyond*, arXiv:2502.05374.
        Moosavi-Dezfooli et al., *Robustness via curvature regularization, and vice versa*, arXiv:1811.09716.
    """

    def __init__(
        self, coef: float = 10.0, mu: float = 0.01, mode: Derivative = "double_backward", detach: bool = True
    ) -> None:
        self.coef, self.mu = at_least("coef", coef, 0), above("mu", mu, 0)
        self.mode, self.detach = one_of("mode", mode, Derivative), detach

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_derivative("CurvatureRegularization", self.mode, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the precision of the weights."""
        super().on_train_start(trainer, pl_module)
        check_resolution("CurvatureRegularization", pl_module)

    def smooth(self, term: ForgetTerm) -> Smoothed:
        """The term and its penalty on one batch."""
        here = term.gradient()
        mean = mean_gradient(term, here.gradients)
        pairs = zip(term.parameters, unit_vector(mean), strict=True)
        moved = [p.detach() + self.mu * v for p, v in pairs]
        with term.at(moved):
            there = term.gradient()
        value, u = curvature_penalty(mean_gradient(term, there.gradients), mean)

        def product(vector: Sequence[Tensor]) -> list[Tensor]:
            return hessian_product(term, vector, self.mode)

        def displaced_product(vector: Sequence[Tensor]) -> list[Tensor]:
            with term.at(moved):
                return product(vector)

        gradients = here.gradients
        if self.coef:
            penalty = curvature_penalty_gradient(mean, u, product, displaced_product, mu=self.mu, detach=self.detach)
            gradients = added(gradients, penalty, self.coef)
        logged = {
            "grad_norm": inner_product(mean, mean).sqrt(),
            "curvature": value,
            "perturbed_loss": there.value,
            "sharpness": there.value - here.value,
        }
        return Smoothed(here.value + self.coef * value, gradients, here.parts, logged)
