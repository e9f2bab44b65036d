"""UGradSL and UGradSL+: gradient ascent with negative label smoothing, and descent on retain rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_unlearn.classification.objective import (
    BatchNormMode,
    ClassifierObjective,
    batch_accuracy,
    check_clipping,
    forget_accuracy,
)
from lightning_unlearn.core.checks import at_least, between, one_of
from lightning_unlearn.core.distributed import gather_objects, rank, world_size
from lightning_unlearn.core.interruption import stop
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.rows import RunRows
from lightning_unlearn.core.scores import Batch, Score, classifier_nll
from lightning_unlearn.functional.classification.adaptive_alpha import Distance, Rule, adaptive_alpha
from lightning_unlearn.functional.classification.label_smoothing import generalized_label_smoothing
from lightning_unlearn.functional.classification.ugradsl import ugradsl
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["UGradSL", "UGradSLPlus"]

Reduction = Literal["mean", "sum"]


class UGradSL(ClassifierObjective):
    r"""UGradSL: ascent on the smoothed loss of forget rows, descent on retain rows, over epochs of forget rows.

    $$\mathcal{L} = p\, \frac{1}{|B_r|} \sum_{r} \ell_r - (1 - p) \frac{1}{|B_f|} \sum_{f} \big[\ell_f + \alpha\,
    (z_{y} - \bar z)_f\big]$$

    Plain ascent starts without a gradient, because the model is certain about the forget rows. Negative smoothing adds
    a gradient on the margin of the true class that does not vanish. $\alpha = 0$ is NegGrad+, $p = 0$ is ascent and $p
    = 1$ is fine-tuning; with $\alpha > 0$ the model remembers better at first. The loss is unbounded below: set
    ``gradient_clip_val``, and end the run with ``forget_accuracy_floor``. With
    ``ForgetRetainDataModule(epoch="forget")``, an epoch costs two rows for each forget row.

    The defaults are ours, tuned on 5,000 MNIST images; we do not know the paper's values for each data set.

    Args:
        alpha: Smoothing rate $\alpha$, at most 0 to forget; ``None`` gives each forget row its own, see
            [`adaptive_alpha`][lightning_unlearn.functional.classification.adaptive_alpha.adaptive_alpha].
        p: Weight of the retain rows, in [0, 1]; by default 0.5. More steps need a larger weight.
        beta: Distance between outputs below which a retain row is similar to a forget row, for ``alpha=None``.
        distance: ``"cosine"``, ``"tv"`` or ``"euclid"``, for ``alpha=None``.
        rule: ``"isolation"`` (the paper's argument) or ``"density"`` (its formula), for ``alpha=None``.
        alpha_scale: Largest magnitude of a row's own rate.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        reduction: ``"mean"`` or ``"sum"`` over the rows of each role. The paper prints sums over batches of equal size.
        forget_accuracy_floor: Stop after the first epoch with an accuracy on all forget rows, in evaluation mode, at or
            below this: 0 to forget a class, the accuracy on unseen rows to forget random ones.
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UGradSL(alpha=-1.0, p=0.9)], logger=False, accelerator="cpu")

    References:
        Di et al., *Label Smoothing Improves Machine Unlearning*, arXiv:2406.07698.
    """

    driver = "forget"
    inseparable = "with alpha=None reads the rates of the forget rows off the retain rows, and with p=1 forgets nothing"
    default_p: ClassVar[float] = 0.5

    def __init__(
        self,
        alpha: float | None = -0.2,
        p: float | None = None,
        beta: float = 0.5,
        distance: Distance = "cosine",
        rule: Rule = "isolation",
        alpha_scale: float = 1.0,
        bn_mode: BatchNormMode = "joint",
        reduction: Reduction = "mean",
        forget_accuracy_floor: float | None = None,
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(bn_mode, score)
        self.keep_reference = keep_reference
        if alpha is not None and not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number, or None for a rate of each row, but got {alpha}.")
        if forget_accuracy_floor is not None:
            between("forget_accuracy_floor", forget_accuracy_floor, 0, 1)
        self.alpha, self.p = alpha, between("p", self.default_p if p is None else p, 0, 1)
        self.beta, self.alpha_scale = at_least("beta", beta, 0), at_least("alpha_scale", alpha_scale, 0)
        self.distance, self.rule = one_of("distance", distance, Distance), one_of("rule", rule, Rule)
        self.reduction, self.forget_accuracy_floor = one_of("reduction", reduction, Reduction), forget_accuracy_floor
        self.separable = alpha is not None and self.p < 1

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The mixed loss on one pair of batches."""

        def terms(roles: Sequence[str]) -> dict[str, Tensor]:
            read = dict(zip(roles, self.predictions(module, batch, roles), strict=True))
            losses = dict.fromkeys(("retain", "forget"), torch.zeros((), device=module.device))
            parts: dict[str, Tensor] = {}
            if "retain" in read:
                losses["retain"] = self._reduced(token_nll(read["retain"].logits, read["retain"].labels))
            if "forget" in read:
                logits = read["forget"].logits
                alpha = self._rate(read["retain"].logits, logits) if self.alpha is None else float(self.alpha)
                losses["forget"] = self._reduced(generalized_label_smoothing(logits, read["forget"].labels, alpha))
                parts = {} if isinstance(alpha, float) else {"alpha": alpha.mean()}
            for role, predictions in read.items():
                parts |= {role: losses[role], f"{role}_accuracy": batch_accuracy(predictions)}
            return {"loss": ugradsl(losses["retain"], losses["forget"], p=self.p), **parts}

        return self.by_term(module, terms, ("retain", "forget"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if nothing bounds the ascent."""
        super().on_train_start(trainer, pl_module)
        if self.p < 1:
            check_clipping(type(self).__name__, trainer)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Check that the forget rows can be read, if the run stops by their accuracy."""
        if self.forget_accuracy_floor is not None:
            RunRows.of_role(trainer, "forget", type(self).__name__)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop once the forget rows are forgotten."""
        if self.forget_accuracy_floor is None:
            return
        known = forget_accuracy(type(self).__name__, trainer, pl_module, self.score)
        if known <= self.forget_accuracy_floor:
            reached = f"at or below forget_accuracy_floor={self.forget_accuracy_floor:g}"
            stop(trainer, f"the accuracy on the forget rows is {known:.3g}, {reached}")

    def _reduced(self, values: Tensor) -> Tensor:
        # Processes average their gradients; this factor turns the average into a sum.
        return self.row_mean(values) if self.reduction == "mean" else values.sum() * world_size()

    def _rate(self, retain: Tensor, forget: Tensor) -> Tensor:
        sizes = [len(forget)]
        if world_size() > 1:  # the neighbours of a row come from the whole batch
            pairs = gather_objects((retain.detach().cpu(), forget.detach().cpu()))
            sizes = [len(rows) for _, rows in pairs]
            retain, forget = (torch.cat(part).to(forget.device) for part in zip(*pairs, strict=True))
        rates = adaptive_alpha(
            retain, forget, beta=self.beta, distance=self.distance, rule=self.rule, scale=self.alpha_scale
        )
        return rates.split(sizes)[rank()]


class UGradSLPlus(UGradSL):
    r"""UGradSL+: the objective of [`UGradSL`][lightning_unlearn.UGradSL], over epochs of retain rows.

    An epoch is a pass over the retain rows, ``ForgetRetainDataModule(epoch="retain")``, during which the forget rows
    are read many times. It costs two rows for each retain row, and retains more. The arguments are those of `UGradSL`,
    except that ``p`` is 0.98 by default.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UGradSLPlus(p=0.95)], logger=False, accelerator="cpu")

    References:
        Di et al., *Label Smoothing Improves Machine Unlearning*, arXiv:2406.07698.
    """

    driver = "retain"
    default_p = 0.98
