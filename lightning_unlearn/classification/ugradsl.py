"""UGradSL and UGradSL+: gradient ascent with negative label smoothing, beside descent on what is kept."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_unlearn.classification.objective import BatchNormMode, ClassifierObjective, batch_accuracy
from lightning_unlearn.core.distributed import gather_objects, mean_over_ranks, rank, world_size
from lightning_unlearn.core.scores import Batch, Score, classifier_nll
from lightning_unlearn.functional.classification.adaptive_alpha import Distance, Rule, adaptive_alpha
from lightning_unlearn.functional.classification.label_smoothing import generalized_label_smoothing
from lightning_unlearn.functional.classification.ugradsl import ugradsl
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["UGradSL", "UGradSLPlus"]


class UGradSL(ClassifierObjective):
    r"""UGradSL: ascent on the smoothed loss of forget rows, descent on retain rows; an epoch is a pass over the former.

    $$\mathcal{L} = p\, \frac{1}{|B_r|} \sum_{r} \ell_r - (1 - p) \frac{1}{|B_f|} \sum_{f} \big[\ell_f + \alpha\,
    (z_{y} - \bar z)_f\big]$$

    Plain ascent starts without a gradient, as the model is sure of the forget rows. Negative smoothing adds a push on
    the margin of the true class that does not vanish. $\alpha = 0$ is NegGrad+, $p = 0$ ascent and $p = 1$
    fine-tuning; $\alpha > 0$ makes the model remember better at first. The loss has no floor: set
    ``gradient_clip_val``, and end with ``forget_accuracy_floor``. An epoch costs two rows for each forget row with
    ``ForgetRetainDataModule(epoch="forget")``.

    The defaults are ours, tuned on 5,000 images of MNIST; the paper's, for each data set, are not known to us.

    Args:
        alpha: Smoothing rate $\alpha$, at most 0 to forget; ``None`` gives each forget row its own, see
            [`adaptive_alpha`][lightning_unlearn.functional.classification.adaptive_alpha.adaptive_alpha].
        p: Weight of the retain rows, in [0, 1]. It needs to rise with the number of steps.
        beta: Distance of outputs below which a retain row is like a forget row, for ``alpha=None``.
        distance: ``"cosine"``, ``"tv"`` or ``"euclid"``, for ``alpha=None``.
        rule: ``"isolation"`` (the paper's reason) or ``"density"`` (its formula), for ``alpha=None``.
        alpha_scale: Largest magnitude of a row's own rate.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        reduction: ``"mean"`` or ``"sum"`` over the rows of each role. The paper prints sums of equally large batches.
        forget_accuracy_floor: Stop after an epoch in which the share of forget rows classified right was at most this:
            0 for a class, the accuracy on unseen rows for random ones.
        score: Reads predictions off the module.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UGradSL(alpha=-1.0, p=0.9)], logger=False, accelerator="cpu")

    References:
        Di et al., *Label Smoothing Improves Machine Unlearning*, arXiv:2406.07698.
    """

    driver = "forget"

    def __init__(
        self,
        alpha: float | None = -0.2,
        p: float = 0.5,
        beta: float = 0.5,
        distance: Distance = "cosine",
        rule: Rule = "isolation",
        alpha_scale: float = 1.0,
        bn_mode: BatchNormMode = "joint",
        reduction: Literal["mean", "sum"] = "mean",
        forget_accuracy_floor: float | None = None,
        score: Score = classifier_nll,
    ) -> None:
        super().__init__(bn_mode, score)
        if alpha is not None and not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number, or None for a rate of each row's own, but got {alpha}.")
        for name, value in (("p", p), ("forget_accuracy_floor", forget_accuracy_floor)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], but got {value}.")
        for name, value in (("beta", beta), ("alpha_scale", alpha_scale)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, but got {value}.")
        if distance not in ("cosine", "tv", "euclid"):
            raise ValueError(f"distance must be 'cosine', 'tv' or 'euclid', but got {distance!r}.")
        if rule not in ("isolation", "density"):
            raise ValueError(f"rule must be 'isolation' or 'density', but got {rule!r}.")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', but got {reduction!r}.")
        self.alpha, self.p, self.beta, self.distance, self.rule = alpha, p, beta, distance, rule
        self.alpha_scale, self.reduction, self.forget_accuracy_floor = alpha_scale, reduction, forget_accuracy_floor
        self._seen = torch.zeros(2, dtype=torch.float64)
        """Forget rows of this epoch that were classified right, and all of them."""

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The mixed loss on one pair of batches."""
        retain, forget = self.predictions(module, batch, ("retain", "forget"))
        alpha = self._rate(retain.logits, forget.logits)
        retain_loss = self._reduced(token_nll(retain.logits, retain.labels))
        forget_loss = self._reduced(generalized_label_smoothing(forget.logits, forget.labels, alpha))
        accuracy = batch_accuracy(forget)
        if self.forget_accuracy_floor is not None:
            rows = len(forget.labels)
            self._seen += torch.tensor([round(accuracy.item() * rows), rows], dtype=torch.float64)
        parts = {"loss": ugradsl(retain_loss, forget_loss, p=self.p), "retain": retain_loss, "forget": forget_loss}
        parts |= {"forget_accuracy": accuracy, "retain_accuracy": batch_accuracy(retain)}
        return parts if isinstance(alpha, float) else {**parts, "alpha": alpha.mean()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop once the forget rows are forgotten."""
        if self.forget_accuracy_floor is None:
            return
        right, rows = mean_over_ranks(self._seen.float().to(pl_module.device)).tolist()
        self._seen.zero_()
        if rows and right / rows <= self.forget_accuracy_floor:
            trainer.should_stop = True

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Start counting."""
        self._seen = torch.zeros(2, dtype=torch.float64)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue the counts of the epoch."""
        self._seen = state["seen"]

    def state_dict(self) -> dict[str, Any]:
        """The method's name, and what was counted of the epoch."""
        return {**super().state_dict(), "seen": self._seen.clone()}

    def _reduced(self, values: Tensor) -> Tensor:
        # Processes average their gradients, which makes a mean of what is to be a sum.
        return self.row_mean(values) if self.reduction == "mean" else values.sum() * world_size()

    def _rate(self, retain: Tensor, forget: Tensor) -> float | Tensor:
        if self.alpha is not None:
            return float(self.alpha)
        sizes = [len(forget)]
        if world_size() > 1:  # a row's neighbours are those of the whole batch
            pairs = gather_objects((retain.detach().cpu(), forget.detach().cpu()))
            sizes = [len(rows) for _, rows in pairs]
            retain, forget = (torch.cat(part).to(forget.device) for part in zip(*pairs, strict=True))
        found = adaptive_alpha(
            retain, forget, beta=self.beta, distance=self.distance, rule=self.rule, scale=self.alpha_scale
        )
        return found.split(sizes)[rank()]


class UGradSLPlus(UGradSL):
    r"""UGradSL+: the objective of [`UGradSL`][lightning_unlearn.UGradSL], over epochs of retain rows.

    $$\mathcal{L} = p\, \frac{1}{|B_r|} \sum_{r} \ell_r - (1 - p) \frac{1}{|B_f|} \sum_{f} \big[\ell_f + \alpha\,
    (z_{y} - \bar z)_f\big]$$

    An epoch is a pass over the retain rows, ``ForgetRetainDataModule(epoch="retain")``, in which forget rows come round
    again and again: so retain rows weigh far more. It costs two rows for each retain row, and keeps more of the model.

    Args:
        alpha: Smoothing rate $\alpha$, at most 0 to forget; ``None`` gives each forget row its own.
        p: Weight of the retain rows, in [0, 1]. It needs to rise with the number of steps.
        beta: Distance of outputs below which a retain row is like a forget row, for ``alpha=None``.
        distance: ``"cosine"``, ``"tv"`` or ``"euclid"``, for ``alpha=None``.
        rule: ``"isolation"`` or ``"density"``, for ``alpha=None``.
        alpha_scale: Largest magnitude of a row's own rate.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``.
        reduction: ``"mean"`` or ``"sum"`` over the rows of each role.
        forget_accuracy_floor: Stop after an epoch in which the share of forget rows classified right was at most this.
        score: Reads predictions off the module.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UGradSLPlus(p=0.95)], logger=False, accelerator="cpu")

    References:
        Di et al., *Label Smoothing Improves Machine Unlearning*, arXiv:2406.07698.
    """

    driver = "retain"

    def __init__(
        self,
        alpha: float | None = -0.2,
        p: float = 0.98,
        beta: float = 0.5,
        distance: Distance = "cosine",
        rule: Rule = "isolation",
        alpha_scale: float = 1.0,
        bn_mode: BatchNormMode = "joint",
        reduction: Literal["mean", "sum"] = "mean",
        forget_accuracy_floor: float | None = None,
        score: Score = classifier_nll,
    ) -> None:
        super().__init__(alpha, p, beta, distance, rule, alpha_scale, bn_mode, reduction, forget_accuracy_floor, score)
