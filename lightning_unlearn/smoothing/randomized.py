"""Randomised smoothing of the forget term over the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, regex
from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.smoothing.forget_term import Evaluation, ForgetTerm
from lightning_unlearn.smoothing.sharded import global_norm, own_part
from lightning_unlearn.smoothing.strategy import Smoothed, SmoothingStrategy

__all__ = ["RandomizedSmoothing"]


class RandomizedSmoothing(SmoothingStrategy):
    r"""Minimizes the mean of the forget term over Gaussian noise on the weights.

    $$\min_\theta\; \mathbb{E}_{z \sim \mathcal{N}(0, I)}\, w_f \mathcal{L}_{forget}(\theta + \sigma z)
      + w_r \mathcal{L}_{retain}(\theta)$$

    The mean is over $n$ samples, each a forward and a backward pass over the forget rows; there is none at $\theta$
    itself. The noise is a function of the seed, the update, the sample and the name of a weight: all batches that an
    update accumulates and all processes have the same, two processes, sharded or not, draw what one draws, and a
    resumed run draws what an uninterrupted one does. Kinds of devices draw different numbers. In memory it costs two
    copies of the weights that train.

    Running statistics of batch normalization take in no forget rows, as all passes over these are at other weights.

    Logs ``smooth/perturbed_loss``, the mean of the forget term over the samples.

    Args:
        sigma: Standard deviation $\sigma$ of the noise. With 0 the forget term is as it is, in one pass.
        n_samples: Samples $n$; 3 in the paper's code.
        antithetic: Whether samples come in pairs $z, -z$. Their mean is exact where the forget term is quadratic.
        relative: Whether the noise is in units of each weight: $\theta (1 + \sigma z)$. A weight of 0, as in new
            adapters, then has none.
        parameters: Regular expression; only weights whose name it is found in have noise. By default all that train.
        seed: Chooses the noise.

    Raises:
        ValueError: If a number is out of range, ``n_samples`` is odd where ``antithetic``, or ``parameters`` is no
            regular expression.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import NPO
        >>> trainer = Trainer(callbacks=[NPO(), RandomizedSmoothing(sigma=1e-4)], logger=False, accelerator="cpu")

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization Perspective
        and Beyond*, arXiv:2502.05374.
    """

    def __init__(
        self,
        sigma: float = 1e-4,
        n_samples: int = 3,
        antithetic: bool = False,
        relative: bool = False,
        parameters: str | None = None,
        seed: int = 0,
    ) -> None:
        self.sigma, self.n_samples = at_least("sigma", sigma, 0), at_least("n_samples", n_samples, 1)
        if antithetic and n_samples % 2:
            raise ValueError(f"antithetic draws samples in pairs, so n_samples must be even, but is {n_samples}.")
        regex("parameters", parameters or "")
        self.antithetic, self.relative, self.parameters, self.seed = antithetic, relative, parameters, seed

    def smooth(self, term: ForgetTerm) -> Smoothed:
        """The mean over the samples."""
        if not self.sigma:
            here = term.gradient()
            return Smoothed(here.value, here.gradients, here.parts, {"perturbed_loss": here.value})
        chosen = term.chosen(self.parameters)
        total: Evaluation | None = None
        for sample in range(self.n_samples):
            values = [self._noisy(term, i, sample) if chosen[i] else None for i in range(len(term.parameters))]
            if sample == 0:
                self.check_rounding(term, values, self._length(term, chosen))
            with term.at(values):
                found = term.gradient()
            del values
            total = found if total is None else _sum(total, found)
        assert total is not None
        for gradient in total.gradients:
            if gradient is not None:
                local_tensor(gradient).div_(self.n_samples)
        value = total.value / self.n_samples
        parts = {name: part / self.n_samples for name, part in total.parts.items()}
        return Smoothed(value, total.gradients, parts, {"perturbed_loss": value})

    @torch.no_grad()
    def _noisy(self, term: ForgetTerm, place: int, sample: int) -> Tensor:
        parameter, name = term.parameters[place], term.names[place]
        pair, sign = (sample // 2, 1 - 2 * (sample % 2)) if self.antithetic else (sample, 1)
        generator = keyed_generator(self.seed, term.update, pair, *name.encode(), device=parameter.device)
        # Types below fp32 get the noise of fp32, rounded.
        kind = torch.promote_types(parameter.dtype, torch.float32)
        noise = torch.randn(parameter.shape, generator=generator, dtype=kind, device=parameter.device)
        weight, noise = local_tensor(parameter), own_part(parameter, noise)
        noise = noise.mul_(sign * self.sigma)
        return (weight + noise * weight.abs() if self.relative else weight + noise).to(weight.dtype)

    def _length(self, term: ForgetTerm, chosen: list[bool]) -> float:
        moving = [p.detach() for p, noisy in zip(term.parameters, chosen, strict=True) if noisy]
        size = global_norm(moving).item() if self.relative else math.sqrt(sum(p.numel() for p in moving))
        return self.sigma * size


def _sum(total: Evaluation, more: Evaluation) -> Evaluation:
    """The sum of two evaluations, whose gradients are added in place."""
    gradients = list(total.gradients)
    for place, gradient in enumerate(more.gradients):
        before = gradients[place]
        if before is None:
            gradients[place] = gradient
        elif gradient is not None:
            local_tensor(before).add_(local_tensor(gradient))
    parts = {name: part + more.parts[name] for name, part in total.parts.items()}
    return Evaluation(total.value + more.value, gradients, parts)
