"""SCRUB: distillation away from the teacher on forget rows and towards it on retain rows."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_unlearn.classification.objective import BatchNormMode, ClassifierObjective, check_clipping
from lightning_unlearn.classification.passes import Passes
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.lightning import LightningModule, Trainer, rank_zero_warn
from lightning_unlearn.core.scores import Batch, Score, classifier_nll
from lightning_unlearn.functional.classification.distillation import distillation
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["SCRUB"]


class SCRUB(ClassifierObjective):
    r"""SCRUB: alternates passes away from the teacher on forget rows with passes towards it on retain rows.

    $$\mathcal{L}_{max} = -\frac{1}{|B_f|} \sum_f D_T(f), \quad
    \mathcal{L}_{min} = \frac{1}{|B_r|} \sum_r \big[\gamma\, \ell_r + \alpha\, D_T(r)\big], \quad
    D_T = T^2 \mathrm{KL}(q_T \Vert p_T)$$

    The teacher, with predictions $q$, is the original model. A max pass precedes each of the first ``max_passes`` min
    passes; after these there are only min passes. A pass consists of the $n_f$ or $n_r$ batches that cover the rows of
    its role. Passes are counted over the run, so ``max_epochs`` with ``ForgetRetainDataModule(epoch="retain")`` has to
    include both: $E$ min passes with $m$ max passes take $E + \lceil m\,n_f / n_r \rceil$ epochs. If student and
    teacher agree, $D_T$ has no gradient: without dropout or batch normalization, the first max pass changes nothing,
    and the first min pass breaks the tie. With [`Rewind`][lightning_unlearn.Rewind] it is SCRUB+R.

    Args:
        alpha: Weight of the teacher on retain rows, $\alpha$. For large data sets the paper uses 0.001.
        gamma: Weight of the labels on retain rows, $\gamma$; for large data sets 0.99.
        temperature: $T > 0$; for large data sets 4.
        max_passes: Number of max passes $m$; for large data sets 2.
        bn_mode: ``"train"`` (the released code), ``"frozen"``, or ``"joint"``, with which each step runs the rows of
            both roles.
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: If there are no retain rows, or the length of a pass is unknown.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SCRUB(max_passes=2)], logger=False, accelerator="cpu")

    References:
        Kurmanji et al., *Towards Unbounded Machine Unlearning*, arXiv:2302.09880.
    """

    driver = "retain"
    separable = True

    needs = Needs(snapshot=True)

    def __init__(
        self,
        alpha: float = 0.5,
        gamma: float = 1.0,
        temperature: float = 2.0,
        max_passes: int = 3,
        bn_mode: BatchNormMode = "train",
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(bn_mode, score, reference="snapshot")
        self.keep_reference = keep_reference
        self.alpha, self.gamma = at_least("alpha", alpha, 0), at_least("gamma", gamma, 0)
        self.temperature = above("temperature", temperature, 0)
        self.max_passes = at_least("max_passes", max_passes, 1, "nothing would be forgotten")
        self._passes = Passes()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches of a pass."""
        super().on_train_start(trainer, pl_module)
        self._passes = Passes.over("SCRUB", trainer.train_dataloader)
        self._check_length(trainer)
        check_clipping("SCRUB", trainer)

    def _check_length(self, trainer: Trainer) -> None:
        """Warn if the run ends before all max passes, each followed by its min pass, are done."""
        limits = [trainer.max_steps * trainer.accumulate_grad_batches] if trainer.max_steps > 0 else []
        if (trainer.max_epochs or 0) > 0 and math.isfinite(trainer.num_training_batches):
            limits.append((trainer.max_epochs or 0) * int(trainer.num_training_batches))
        needed = self.max_passes * sum(self._passes)
        if limits and min(limits) < needed:
            rank_zero_warn(
                f"SCRUB makes {self.max_passes} max passes of {self._passes.forget} batches, each before a min pass of "
                f"{self._passes.retain}, which takes {needed} batches, but the run ends after {min(limits)}. Raise "
                "max_epochs, or lower max_passes."
            )

    def forgets(self, batch: int) -> bool:
        """Whether a batch, counted from the start of the run, belongs to a max pass."""
        number, forgets = self._passes.at(batch)
        return forgets and number < self.max_passes

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Loss of the pass that the batch belongs to."""
        forgets = self.forgets(module.trainer.fit_loop.epoch_loop.total_batch_idx)
        role = "forget" if forgets else "retain"
        # Run the teacher first: exchanging weights would invalidate a graph that already refers to them.
        teacher = self.reference_predictions(module, batch[role]).logits
        if forgets:
            return self.smoothed(module, lambda: self._drive_apart(module, batch, teacher))
        (student,) = self.predictions(module, batch, ("retain",))
        apart = self.row_mean(distillation(student.logits, teacher, temperature=self.temperature))
        nll = self.row_mean(token_nll(student.logits, student.labels))
        return {"loss": self.gamma * nll + self.alpha * apart, "retain": nll, "retain_divergence": apart}

    def _drive_apart(self, module: LightningModule, batch: dict[str, Batch], teacher: Tensor) -> dict[str, Tensor]:
        (student,) = self.predictions(module, batch, ("forget",))
        apart = self.row_mean(distillation(student.logits, teacher, temperature=self.temperature))
        return {"loss": -apart, "forget_divergence": apart}
