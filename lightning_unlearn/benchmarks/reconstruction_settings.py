"""Settings of the reconstruction benchmark: the data and network, what is measured, and what each method can tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.reconstruction.attack import MeasurementPGD
from lightning_unlearn.reconstruction.data.brain_template import VoxelSize
from lightning_unlearn.reconstruction.lit_reconstruction import Mode

__all__ = ["METHODS", "QUICK_CONDITIONS", "QUICK_RECIPE", "Conditions", "Method", "Recipe", "Setting"]


@dataclass(frozen=True)
class Recipe:
    """The data, the network and the length of the training, the same for all methods.

    Args:
        voxel: Side of the voxels of the brain template in mm; 3 gives images of 64 by 64.
        coils: Number of coils.
        acceleration: Ratio of all columns of k-space to those that are measured.
        unrolled_steps: Steps of the unrolled network.
        channels: Width of the denoiser.
        depth: Convolutions of the denoiser.
        samples: Noise samples of a smoothed network in training.
        pretraining_sigma: Noise that the denoiser is pre-trained on.
        pretraining_steps: Updates of the pre-training, which all methods of a seed share.
        tuning_steps: Updates of a tuning run.
        steps: Updates of a reported run.
        batch_size: Images in a batch; twice as many in pre-training.

    Raises:
        ValueError: If a number is out of range.
    """

    voxel: VoxelSize = 3
    coils: int = 4
    acceleration: float = 4.0
    unrolled_steps: int = 4
    channels: int = 16
    depth: int = 5
    samples: int = 3
    pretraining_sigma: float = 0.05
    pretraining_steps: int = 400
    tuning_steps: int = 500
    steps: int = 1500
    batch_size: int = 2

    def __post_init__(self) -> None:
        for name in ("pretraining_steps", "tuning_steps", "steps"):
            at_least(name, getattr(self, name), 4)  # the learning rate rises, and falls again
        for name in ("coils", "unrolled_steps", "channels", "samples", "batch_size"):
            at_least(name, getattr(self, name), 1)
        above("pretraining_sigma", self.pretraining_sigma, 0)


@dataclass(frozen=True)
class Conditions:
    """Conditions under which a trained network is measured.

    Args:
        eps: Strengths of the attack; validation uses the one in the middle of the list.
        attack_steps: Steps of an attack.
        restarts: Starts of each attack on each surrogate; validation uses one.
        noise: Standard deviations of Gaussian noise on the measurements.
        rates: Accelerations.
        unrolled_steps: Numbers of steps of the network.
        samples: Noise samples of a smoothed network, also for the attacker.
        rows: Number of test images, which alternate between the slices of the test band.
        validation_rows: The same for the validation band.

    Raises:
        ValueError: If a number is out of range, or there is no strength of the attack.
    """

    eps: tuple[float, ...] = (0.02, 0.05, 0.08)
    attack_steps: int = 20
    restarts: int = 3
    noise: tuple[float, ...] = (0.02, 0.05, 0.08)
    rates: tuple[float, ...] = (2.0, 3.0, 4.0, 6.0, 8.0)
    unrolled_steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    samples: int = 4
    rows: int = 12
    validation_rows: int = 6

    def __post_init__(self) -> None:
        for name in ("attack_steps", "restarts", "samples", "rows", "validation_rows"):
            at_least(name, getattr(self, name), 1)
        for name in ("eps", "noise"):
            for strength in getattr(self, name):
                above(name, strength, 0)
        for name in ("rates", "unrolled_steps"):
            for strength in getattr(self, name):
                at_least(name, strength, 1)
        if not self.eps or list(self.eps) != sorted(set(self.eps)):
            raise ValueError(f"eps must be strengths of the attack in ascending order, but got {list(self.eps)}.")

    def of_validation(self) -> Conditions:
        """Clean, and under the attack in the middle of the list from a single start."""
        middle = (self.eps[len(self.eps) // 2],)
        return replace(self, eps=middle, restarts=1, noise=(), rates=(), unrolled_steps=(), rows=1)

    def attacks(self, seed: int) -> MeasurementPGD:
        """The attack; the radius is that of each condition."""
        return MeasurementPGD(steps=self.attack_steps, surrogate="adaptive", restarts=self.restarts, seed=seed)


QUICK_RECIPE = Recipe(pretraining_steps=100, tuning_steps=40, steps=120)
QUICK_CONDITIONS = Conditions(
    attack_steps=8, restarts=1, noise=(0.05,), rates=(2.0, 8.0), unrolled_steps=(2, 8), rows=6, validation_rows=3
)
"""A protocol of some minutes, to try the command out: its networks are far from trained."""


@dataclass(frozen=True)
class Setting:
    """Tunable settings of a method; those that it does not have are 0.

    Args:
        lr: Peak of the learning rate.
        sigma: Noise of a smoothed network.
        reconstruction_weight: Weight of the reconstruction against the stability of the denoiser, lambda_l in SMUG.
        eps: Strength of the attack in adversarial training.
    """

    lr: float = 1e-3
    sigma: float = 0.0
    reconstruction_weight: float = 0.0
    eps: float = 0.0


@dataclass(frozen=True)
class Method:
    """A mode of training, and the settings to choose from.

    Args:
        mode: Mode of [`LitReconstruction`][lightning_unlearn.LitReconstruction].
        settings: Settings to choose from; all methods have the same number.
    """

    mode: Mode
    settings: tuple[Setting, ...]


_LRS = (5e-4, 1e-3, 2e-3)
_SMUG = tuple(Setting(lr, sigma, weight) for lr in (1e-3, 2e-3) for sigma in (0.01, 0.05) for weight in (10, 30, 100))
_MANY_LRS = (1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3, 8e-3)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "vanilla": Method("vanilla", tuple(Setting(lr=lr) for lr in _MANY_LRS)),
        "RS-E2E": Method(
            "rs_e2e", tuple(Setting(lr=lr, sigma=sigma) for sigma in (0.01, 0.03, 0.05, 0.1) for lr in _LRS)
        ),
        "SMUG": Method("smug", _SMUG),
        "weighted SMUG": Method("weighted_smug", _SMUG),
        "adversarial training": Method(
            "adversarial", tuple(Setting(lr=lr, eps=eps) for eps in (0.01, 0.02, 0.05, 0.08) for lr in _LRS)
        ),
    }
)
"""Settings of each method: twelve. The learning rate fills up where a method has fewer of its own."""
