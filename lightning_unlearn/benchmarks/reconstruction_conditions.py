"""Conditions that a reconstruction network is measured under: attacks, noise, other sampling, more or fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.benchmarks.reconstruction_settings import Conditions
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.functional.reconstruction.quality import complex_psnr, magnitude_ssim, nmse
from lightning_unlearn.reconstruction.attack import MeasurementPGD
from lightning_unlearn.reconstruction.data.sampling import ColumnSampling
from lightning_unlearn.reconstruction.lit_reconstruction import LitReconstruction
from lightning_unlearn.reconstruction.operators import MultiCoilMRI

__all__ = ["Condition", "Quality", "conditions", "measured", "perturbed", "zero_filled"]

Batch = dict[str, Tensor]
Quality = dict[str, list[float]]
"""``psnr`` of complex images in dB, ``ssim`` of magnitudes and ``nmse``: a number of each image, by its row number."""

_MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": complex_psnr, "ssim": magnitude_ssim, "nmse": nmse}
_NOISE, _MASK = 1, 9 << 32  # streams


class Condition(NamedTuple):
    """What is changed, and how much.

    Args:
        kind: ``"clean"`` for nothing; ``"attack"`` by PGD on the measurements, ``"noise"`` on them, ``"rate"`` of the
            acceleration, or ``"unrolling"``, the number of steps of the network.
        strength: Its strength: ``eps``, a standard deviation, an acceleration, or a number of steps.
    """

    kind: Literal["clean", "attack", "noise", "rate", "unrolling"]
    strength: float = 0.0

    @property
    def name(self) -> str:
        """As results are kept by it.

        Example:
            >>> Condition("attack", 0.05).name, Condition("clean").name
            ('attack 0.05', 'clean')
        """
        return self.kind if self.kind == "clean" else f"{self.kind} {self.strength:g}"


def conditions(limits: Conditions) -> list[Condition]:
    """All conditions of the benchmark."""
    return [
        Condition("clean"),
        *(Condition("attack", eps) for eps in limits.eps),
        *(Condition("noise", sigma) for sigma in limits.noise),
        *(Condition("rate", rate) for rate in limits.rates),
        *(Condition("unrolling", steps) for steps in limits.unrolling),
    ]


def measured(
    module: LitReconstruction,
    loader: Iterable[Batch],
    wanted: Sequence[Condition],
    attack_steps: int,
    restarts: int,
    sampling: ColumnSampling | None = None,
    keep: dict[str, Tensor] | None = None,
) -> dict[str, Quality]:
    """Quality of the reconstructions of each image under each condition.

    The attack is adaptive: of the perturbations found through the smoothed and through the plain network, from several
    starts each, an image has the one that is worst for the network as it is used.

    Args:
        module: The network.
        loader: Batches with ``full_kspace``.
        wanted: The conditions.
        attack_steps: Steps of PGD.
        restarts: Starts on each surrogate.
        sampling: Masks, for conditions of another acceleration.
        keep: Gets the reconstructions of all images by the name of the condition, and the ``target``.

    Returns:
        By the name of the condition.
    """
    images: dict[str, list[Tensor]] = {}
    targets = []
    for batch in loader:
        targets.append(batch["target"])
        for condition in wanted:
            if condition.kind == "attack":
                attack = MeasurementPGD(condition.strength, steps=attack_steps, surrogate="adaptive", restarts=restarts)
                changed = attack.attack(module, batch).batch
            else:
                changed = perturbed(batch, condition, sampling)
            steps = int(condition.strength) if condition.kind == "unrolling" else None
            with evaluating(module):
                images.setdefault(condition.name, []).append(module.reconstruct(changed, steps=steps))
    target = torch.cat(targets)
    joined = {name: torch.cat(parts) for name, parts in images.items()}
    if keep is not None:
        keep.update(joined, target=target)
    return {name: _quality(image, target) for name, image in joined.items()}


def perturbed(batch: Batch, condition: Condition, sampling: ColumnSampling | None = None) -> Batch:
    """A batch under a condition that does not depend on the network.

    Each image has the same noise at all strengths, and a mask of its own at each acceleration.
    """
    indices = batch["index"].tolist()
    if condition.kind == "noise":
        shape = batch["kspace"].shape[1:]
        draws = [torch.randn(*shape, 2, generator=keyed_generator(_NOISE, index)) for index in indices]
        noise = torch.view_as_complex(torch.stack(draws))
        return batch | {"kspace": batch["kspace"] + condition.strength * noise * batch["mask"]}
    if condition.kind == "rate":
        if sampling is None:
            raise ValueError(f"{condition.name} needs masks: pass sampling=ColumnSampling().")
        other, width = sampling.at(condition.strength), batch["mask"].shape[-1]
        mask = torch.stack([other(width, index + _MASK) for index in indices])[:, None, None]
        return batch | {"kspace": batch["full_kspace"] * mask, "mask": mask}
    return batch


def zero_filled(loader: Iterable[Batch], wanted: Sequence[Condition], sampling: ColumnSampling) -> dict[str, Quality]:
    """Quality of the zero-filled images, which no network has seen."""
    found: dict[str, Quality] = {}
    for batch in loader:
        for condition in wanted:
            changed = perturbed(batch, condition, sampling)
            image = MultiCoilMRI(changed["maps"], changed["mask"]).A_adjoint(changed["kspace"])
            for name, values in _quality(image, batch["target"]).items():
                found.setdefault(condition.name, {}).setdefault(name, []).extend(values)
    return found


def _quality(image: Tensor, target: Tensor) -> Quality:
    return {name: measure(image, target).tolist() for name, measure in _MEASURES.items()}
