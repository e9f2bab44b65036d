"""Worst-case perturbations of measurements by projected gradient descent (PGD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.functional.random import keyed_seed
from lightning_unlearn.functional.reconstruction.perturbation import ascent_step, l2_norms, project_l2, project_linf
from lightning_unlearn.functional.smoothing.gaussian import gaussian_noise
from lightning_unlearn.reconstruction.reconstructor import Reconstruct, Reconstructor

__all__ = ["MeasurementPGD", "PerturbedBatch"]

Batch = Mapping[str, Any]
_STREAM = 2  # random stream of smoothed networks' noise in an attack, distinct from those of training and evaluation


class PerturbedBatch(NamedTuple):
    """A batch with perturbed measurements.

    Args:
        batch: The batch with the perturbed ``kspace``.
        perturbation: What was added: to k-space ``(B, C, H, W)``, or to the image ``(B, H, W)``.
        clean_loss: Mean squared error of each image without perturbation, shape ``(B,)``; ``None`` if only the last
            iterate was kept.
        loss: The error with the perturbation, at least ``clean_loss``.
    """

    batch: dict[str, Any]
    perturbation: Tensor
    clean_loss: Tensor | None
    loss: Tensor | None


class MeasurementPGD:
    r"""Search for the small perturbation of measurements that degrades a reconstruction the most.

    $$\delta \leftarrow \Pi_\epsilon\big(\delta + \alpha\, \mathrm{sign} \nabla_\delta \|R(y + \delta) - t\|^2\big)$$

    The iteration starts from Gaussian noise, treats real and imaginary parts separately, and perturbs only the sampled
    columns. Both the zero-filled image and data consistency use the perturbed measurements. A smoothed network draws
    new noise in each step, so that the attack ascends the mean over noise.

    For each image, the candidate with the largest error under the attacked reconstruction is kept, among all
    perturbations tried and no perturbation. The network's weights, gradients, modes and buffers do not change, and
    neither does the global random state; draws depend only on the seed and the ``index`` of the image. The attack works
    during validation and test, also under ``inference_mode``.

    It can attack any module with a method ``reconstruct(batch) -> (B, H, W)``. If that method takes ``mode=``, as in
    [`LitReconstruction`][lightning_unlearn.LitReconstruction], ``mode="vanilla"`` is the network without smoothing.

    Args:
        eps: Radius $\epsilon$. With ``"linf"`` it bounds the real and imaginary part of each entry; with ``"l2"`` the
            norm, as a share of that of the measurements or of the zero-filled image.
        alpha: Step size $\alpha$ in the same unit; by default $\epsilon / 3$.
        steps: Number of steps.
        domain: ``"kspace"`` perturbs the measurements. ``"image"`` perturbs the object, $y + A\delta$; its unsampled
            frequencies have no effect. (The first code of SMUG perturbs the zero-filled image, which need not be
            consistent with any measurement.)
        surrogate: The network whose gradient is taken: ``"smoothed"``, the reconstruction itself; ``"base"``, the
            network without smoothing, which the first version of SMUG attacks; ``"adaptive"``, both, keeping the worse
            result for each image.
        norm: ``"linf"`` or ``"l2"``; with the latter, the step is along the gradient.
        restarts: Number of ascents, each from different noise.
        keep: ``"worst"`` as above, or ``"last"``: the last iterate, without the extra passes for the comparison, as in
            adversarial training.
        seed: Seed of the draws.
        base: Gives the reconstructions without smoothing for ``(module, batch)``; for modules whose ``reconstruct`` has
            no ``mode``.

    Raises:
        ValueError: If a number is out of range, a name is unknown, or ``keep="last"`` would have several candidates.

    Example:
        >>> attack = MeasurementPGD(eps=0.02)
        >>> round(attack.alpha, 6)
        0.006667

    References:
        Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, arXiv:1706.06083;
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784;
        Athalye et al., *Obfuscated Gradients Give a False Sense of Security*, arXiv:1802.00420.
    """

    def __init__(
        self,
        eps: float = 0.02,
        alpha: float | None = None,
        steps: int = 10,
        domain: Literal["kspace", "image"] = "kspace",
        surrogate: Literal["smoothed", "base", "adaptive"] = "smoothed",
        norm: Literal["linf", "l2"] = "linf",
        restarts: int = 1,
        keep: Literal["worst", "last"] = "worst",
        seed: int = 0,
        base: Reconstruct | None = None,
    ) -> None:
        self.eps = at_least("eps", eps, 0)
        self.alpha = eps / 3 if alpha is None else above("alpha", alpha, 0)
        self.steps, self.restarts = at_least("steps", steps, 1), at_least("restarts", restarts, 1)
        self.domain = one_of("domain", domain, ("kspace", "image"))
        self.surrogate = one_of("surrogate", surrogate, ("smoothed", "base", "adaptive"))
        self.norm, self.keep = one_of("norm", norm, ("linf", "l2")), one_of("keep", keep, ("worst", "last"))
        self.seed, self.base = seed, base
        if keep == "last" and (restarts > 1 or surrogate == "adaptive"):
            raise ValueError("keep='last' has one ascent, so it needs restarts=1 and no surrogate='adaptive'.")

    def at(self, eps: float) -> MeasurementPGD:
        """The same attack with another radius and a step size in proportion to it."""
        other = copy(self)
        other.eps = at_least("eps", eps, 0)
        other.alpha = eps * (self.alpha / self.eps if self.eps else 1 / 3)
        return other

    def attack(self, module: nn.Module, batch: Batch, key: Sequence[int] = ()) -> PerturbedBatch:
        """Perturb the measurements of a batch.

        Args:
            module: The module whose reconstruction is attacked.
            batch: A batch with ``kspace``, ``target``, and what the module needs.
            key: Determines the draws together with the seed, for example the step of an adversarial training.

        Raises:
            TypeError: If the module has no ``reconstruct``, or can't reconstruct without smoothing if that is needed.
        """
        victim = Reconstructor(module, self.base)
        with differentiable(module):
            fixed = {name: x.detach().clone() if isinstance(x, Tensor) else x for name, x in batch.items()}
            run = _Ascents(self, victim, fixed, tuple(key))
            if self.keep == "worst":
                return run.worst()
            return run.perturbed(run.ascend(self.surrogate == "base", 0)[-1])


class _Ascents:
    """All ascents on one batch."""

    def __init__(
        self, attack: MeasurementPGD, victim: Reconstructor, batch: dict[str, Any], key: tuple[int, ...]
    ) -> None:
        self.attack, self.victim, self.batch, self.key = attack, victim, batch, key
        self.operator = victim.operator(batch) if attack.domain == "image" else None
        self.like = self.operator.A_adjoint(batch["kspace"]) if self.operator else batch["kspace"]
        index = batch.get("index")
        self.rows = None if index is None else index.tolist()
        self.radius = attack.eps * l2_norms(self.like) if attack.norm == "l2" else attack.eps
        self.size = attack.alpha * l2_norms(self.like) if attack.norm == "l2" else attack.alpha

    def worst(self) -> PerturbedBatch:
        """The worst perturbation of each image, under the module's own reconstruction."""
        kept = torch.zeros_like(self.like)
        clean = best = self.evaluated(kept)
        bases = {"smoothed": [False], "base": [True], "adaptive": [False, True]}[self.attack.surrogate]
        for base in bases if self.attack.eps else ():
            for restart in range(self.attack.restarts):
                for candidate in self.ascend(base, restart):
                    loss = self.evaluated(candidate)
                    kept = torch.where(_each(loss > best, kept), candidate, kept)
                    best = torch.maximum(best, loss)
        return self.perturbed(kept)._replace(clean_loss=clean, loss=best)

    def ascend(self, base: bool, restart: int) -> list[Tensor]:
        """For each image, the iterate before the last one with the largest error, and the last iterate."""
        delta = kept = self.start(base, restart)
        best = delta.new_full((len(delta),), -torch.inf, dtype=delta.real.dtype)
        for step in range(self.attack.steps if self.attack.eps else 0):
            variable = delta.clone().requires_grad_(True)
            key = (_STREAM, self.attack.seed, *self.key, int(base), restart, step)
            loss = self.loss(variable, base, key)
            (gradient,) = torch.autograd.grad(loss.sum(), variable)
            loss = _ranked(loss.detach())
            kept, best = torch.where(_each(loss > best, kept), delta, kept), torch.maximum(best, loss)
            delta = self.project(delta + self.size * ascent_step(gradient, self.attack.norm))
        return [kept, delta]

    def start(self, base: bool, restart: int) -> Tensor:
        """Gaussian noise with a typical size equal to the radius."""
        noise = gaussian_noise(self.like, 1, (self.attack.seed, *self.key, int(base), restart), self.rows)[0]
        scale = (2 * self.like[0].numel()) ** -0.5 if self.attack.norm == "l2" else 1.0
        return self.project(self.radius * scale * noise)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest perturbation that lies in the ball and on the sampled columns."""
        if self.operator is None and "mask" in self.batch:
            delta = delta * self.batch["mask"]
        if self.attack.norm == "l2":
            return project_l2(delta, self.radius)
        return project_linf(delta, self.attack.eps)

    def loss(self, delta: Tensor, base: bool = False, key: Sequence[int] | None = None) -> Tensor:
        """The mean squared error of each image, shape (B,)."""
        # Seed the global generator for modules that draw from it; its state is restored at the end.
        torch.manual_seed(keyed_seed(*(key or (_STREAM, self.attack.seed))))
        images = self.victim(self.with_perturbation(delta), base, key=key)
        return torch.view_as_real(images - self.batch["target"]).square().flatten(1).mean(1)

    def evaluated(self, delta: Tensor) -> Tensor:
        """The error under the module's own reconstruction, with the noise it always draws."""
        with torch.no_grad():
            return _ranked(self.loss(delta))

    def with_perturbation(self, delta: Tensor) -> dict[str, Any]:
        added = delta if self.operator is None else self.operator.A(delta)
        return self.batch | {"kspace": self.batch["kspace"] + added}

    def perturbed(self, delta: Tensor) -> PerturbedBatch:
        return PerturbedBatch(self.with_perturbation(delta), delta, None, None)


def _ranked(loss: Tensor) -> Tensor:
    """Errors with NaN ranked as the largest."""
    return loss.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _each(chosen: Tensor, like: Tensor) -> Tensor:
    """A selection of rows (B,) in a shape that broadcasts."""
    return chosen.view(-1, *[1] * (like.ndim - 1))
