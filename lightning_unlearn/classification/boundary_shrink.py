"""Boundary shrink: training forget rows as the class across their nearest decision boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_unlearn.classification.inputs import input_of, with_input
from lightning_unlearn.classification.objective import BatchNormMode, ClassifierObjective
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, strategy
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.classification.fgsm import fgsm
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["BoundaryShrink"]


class BoundaryShrink(ClassifierObjective):
    r"""Boundary shrink: trains each forget row as the class that an attack on the original model finds for it.

    $$\mathcal{L} = \frac{1}{|B_f|} \sum_f \ell(h_\theta(x), \tilde y), \quad
    \tilde y = \arg\max_k h_{\theta_o}(x')_k, \quad
    x' = \mathrm{clip}\big(x + \epsilon\, \mathrm{sign} \nabla_x \ell(h_{\theta_o}(x), y)\big)$$

    The original model is attacked in evaluation mode. If the attack fails, $\tilde y = y$ and the row is trained with
    its own label, as in the released code. ``unlearn/attack_failures`` is the share of such rows; raise ``epsilon`` if
    it is high. Retain rows are read only for batch normalization statistics. The released code uses SGD with a learning
    rate of 1e-5, momentum of 0.9, and 10 epochs of forget rows.

    Args:
        epsilon: Step of the attack $\epsilon > 0$, in pixels.
        mean: Mean of each channel with which the inputs were normalized, or one value for all channels.
        std: Standard deviation, in the same form. Clipping applies to pixels, not to the normalized inputs.
        clip: Lowest and highest pixel value; ``None`` for unbounded inputs, such as measurements.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"`` (the released code), see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a number is out of range.
        MisconfigurationException: If inputs lie outside ``clip``, a row does not have exactly one floating-point
            tensor, or weights are sharded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BoundaryShrink(mean=[0.1307], std=[0.3081])], logger=False, accelerator="cpu")

    References:
        Chen et al., *Boundary Unlearning*, arXiv:2303.11570.
    """

    driver = "forget"

    needs = Needs(snapshot=True)
    separable = True

    def __init__(
        self,
        epsilon: float = 0.1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        clip: tuple[float, float] | None = (0.0, 1.0),
        bn_mode: BatchNormMode = "joint",
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(bn_mode, score, reference="snapshot")
        self.keep_reference = keep_reference
        self.epsilon = above("epsilon", epsilon, 0, "no row would change its class")
        for deviation in std or []:
            above("std", deviation, 0)
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError(f"clip must be (lowest, highest) pixel, but got {clip}.")
        self.mean, self.std, self.clip = mean, std, clip

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read retain rows only if joint batch normalization statistics need them."""
        super().on_train_start(trainer, pl_module)
        self.needs = replace(self.needs, roles=("forget", "retain") if self._joint_statistics else ("forget",))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the strategy."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            strategy("BoundaryShrink", trainer, sharded=False)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Cross-entropy of the forget rows with the classes across the boundary."""
        # Run the attack first: exchanging weights would invalidate a graph that already refers to them.
        labels = self._across(module, batch["forget"])

        def term() -> dict[str, Tensor]:
            (forget,) = self.predictions(module, batch, ("forget",))
            return {
                "loss": self.row_mean(token_nll(forget.logits, labels)),
                "attack_failures": self.row_mean((labels == forget.classes()).float()),
                "forget_nll": self.row_mean(token_nll(forget.logits.detach(), forget.labels)),
            }

        return self.smoothed(module, term)

    def _across(self, module: LightningModule, rows: Batch) -> Tensor:
        assert self.snapshot is not None
        assert isinstance(self.score, PredictionScore)
        inputs = input_of("BoundaryShrink", rows).detach()
        self._check_range(inputs)
        with self.snapshot.active(module):
            with torch.enable_grad():
                inputs.requires_grad_()
                nll = self.score.predictions(module, with_input(rows, inputs)).nll().sum()
                (gradient,) = torch.autograd.grad(nll, inputs)
            attacked = self._attacked(inputs, gradient, self.epsilon)
            return self.score.predictions(module, with_input(rows, attacked)).logits.argmax(1)

    def _attacked(self, inputs: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
        return fgsm(inputs, gradient, epsilon=epsilon, mean=self.mean, std=self.std, clip=self.clip)

    def _check_range(self, inputs: Tensor) -> None:
        """Reject inputs that clipping alone would change."""
        if self.clip is None:
            return
        clipped = self._attacked(inputs, torch.zeros_like(inputs), 0.0)
        tolerance = 1e-2 * (self.clip[1] - self.clip[0]) / min(self.std or [1.0])
        if not torch.allclose(clipped, inputs, atol=tolerance, rtol=0):
            raise MisconfigurationException(
                f"BoundaryShrink clips pixels to {self.clip}, but with mean={self.mean} and std={self.std} the inputs, "
                f"from {inputs.min():.4g} to {inputs.max():.4g}, lie outside. Pass the mean and std that they were "
                "normalized with, the range of their pixels as clip, or clip=None where they have no bounds."
            )
