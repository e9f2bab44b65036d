"""Sharpness-aware minimization of the forget term."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, regex
from lightning_unlearn.core.distributed import all_true, local_tensor
from lightning_unlearn.functional.smoothing.sam import asam_perturbation, sam_perturbation
from lightning_unlearn.smoothing.forget_term import ForgetTerm
from lightning_unlearn.smoothing.sharded import global_norm
from lightning_unlearn.smoothing.strategy import Smoothed, SmoothingStrategy

__all__ = ["SAM"]


class SAM(SmoothingStrategy):
    r"""Sharpness-aware unlearning: minimizes the forget term at the worst weights nearby.

    $$\min_\theta \max_{\lVert \epsilon \rVert_2 \le \rho} w_f \mathcal{L}_{forget}(\theta + \epsilon)
      + w_r \mathcal{L}_{retain}(\theta), \qquad
      \epsilon = \rho\, \frac{g}{\lVert g \rVert_2}, \quad g = \nabla_\theta \mathcal{L}_{forget}(\theta)$$

    The forget term is read twice, at $\theta$ and at $\theta + \epsilon$, and its gradient is that at
    $\theta + \epsilon$, to first order. The norm is of all weights that train as one vector, those that a mask
    freezes included: an attacker may move these. Where batches are accumulated, each has a perturbation of its own, so
    that two batches of one row are not one batch of two. In memory it costs a copy of the weights that train.

    Weights of bf16 have steps of 1/256 of their size, which a small $\rho$ does not reach: a warning says so. Take
    ``precision="bf16-mixed"``, which keeps them in fp32.

    Logs ``smooth/grad_norm`` $\lVert g \rVert_2$, ``smooth/perturbed_loss`` and ``smooth/sharpness``: the forget term
    at $\theta + \epsilon$, and by how much it is larger than at $\theta$.

    Args:
        rho: Length $\rho$ of the perturbation; 0.01 with NPO, 0.1 with GradDiff in the paper's code. With 0 the forget
            term is as it is.
        adaptive: Whether the perturbation is in units of each weight (ASAM): $\epsilon = \rho\, T^2 g / \lVert T g
            \rVert_2$ with $T = |\theta|$.
        parameters: Regular expression; only weights whose name it is found in are perturbed. By default all that train.
        sync_perturbation: Whether the perturbation is that of the gradient over all processes, as it is of one process
            with the joined batch; else each process has that of its own rows, which saves a reduction of the gradient.
            Under FSDP2 it is always the former.

    Raises:
        ValueError: If ``rho`` is negative, or ``parameters`` no regular expression.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import NPO
        >>> trainer = Trainer(callbacks=[NPO(), SAM(rho=0.01)], logger=False, accelerator="cpu")

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization Perspective
        and Beyond*, arXiv:2502.05374.
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, arXiv:2010.01412.
        Kwon et al., *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
        Networks*, arXiv:2102.11600.
    """

    def __init__(
        self,
        rho: float = 0.01,
        adaptive: bool = False,
        parameters: str | None = None,
        sync_perturbation: bool = True,
    ) -> None:
        self.rho, self.adaptive = at_least("rho", rho, 0), adaptive
        regex("parameters", parameters or "")
        self.parameters, self.sync_perturbation = parameters, sync_perturbation

    def smooth(self, term: ForgetTerm) -> Smoothed:
        """The forget term at the perturbed weights."""
        here = term.gradient()
        gradients = here.gradients
        if self.sync_perturbation:
            term.average_(gradients)
        moving = [
            (place, parameter)
            for place, (parameter, chosen) in enumerate(zip(term.parameters, term.chosen(self.parameters), strict=True))
            if chosen and gradients[place] is not None
        ]
        norm = global_norm(self._scaled(parameter, gradients[place]) for place, parameter in moving)
        logged = {"grad_norm": norm, "perturbed_loss": here.value, "sharpness": torch.zeros_like(here.value)}
        # A gradient that is not finite goes on as it is: the objective stops the run, or a gradient scaler skips it.
        if not self.rho or not all_true(norm.isfinite()):
            return Smoothed(here.value, gradients, here.parts, logged)
        values: list[Tensor | None] = [None] * len(gradients)
        for place, parameter in moving:
            gradient, gradients[place] = (
                gradients[place],
                None,
            )  # so that there is one further copy of the weights in all
            assert gradient is not None
            weight = local_tensor(parameter.detach())
            values[place] = weight + self._perturbation(weight, local_tensor(gradient), norm)
        gradients.clear()
        self.check_rounding(term, values, self.rho)
        with term.at(values):
            there = term.gradient()
        logged |= {"perturbed_loss": there.value, "sharpness": there.value - here.value}
        return Smoothed(there.value, there.gradients, here.parts, logged)

    def _scaled(self, parameter: Tensor, gradient: Tensor | None) -> Tensor:
        assert gradient is not None
        return parameter.detach().abs() * gradient if self.adaptive else gradient

    def _perturbation(self, weight: Tensor, gradient: Tensor, norm: Tensor) -> Tensor:
        if self.adaptive:
            return asam_perturbation(gradient, weight, self.rho, norm)
        return sam_perturbation(gradient, self.rho, norm)
