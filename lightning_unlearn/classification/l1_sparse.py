"""l1-sparse: fine-tuning with a decaying L1 penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.classification.fine_tune import FineTune
from lightning_unlearn.core.checks import above, at_least, strategy
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.scores import Batch, Score, classifier_nll
from lightning_unlearn.functional.classification.l1_sparse import l1_weight

__all__ = ["L1Sparse"]


class L1Sparse(FineTune):
    r"""l1-sparse: fine-tuning on the retain rows with an L1 penalty that decays over the run.

    $$\mathcal{L} = \frac{1}{|B_r|} \sum_r \ell_r + \gamma_e \lVert\theta\rVert_1, \quad
    \gamma_e = \gamma \big(1 - \tfrac{e}{E - E_0}\big)$$

    The penalty applies to all trainable weights, including biases and batch normalization.

    Args:
        gamma: Weight of the penalty in the first epoch $\gamma > 0$. Tune it in 1e-5 to 5e-4; the released code's
            default of 0.2 belongs to another method.
        no_l1_epochs: Number of epochs without penalty at the end, $E_0$.
        epochs: Epochs $E$ over which the penalty decays; by default ``max_epochs`` of the Trainer.
        score: Reads likelihoods from the module; ``training_step_loss`` uses the module's own loss.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a number is out of range.
        MisconfigurationException: If neither the method nor the Trainer has a number of epochs, or weights are sharded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[L1Sparse(gamma=1e-4)], max_epochs=10, logger=False, accelerator="cpu")

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """

    def __init__(
        self,
        gamma: float = 5e-4,
        no_l1_epochs: int = 0,
        epochs: int | None = None,
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(score)
        self.keep_reference = keep_reference
        self.gamma = above("gamma", gamma, 0, "without a penalty, use FineTune")
        self.no_l1_epochs = at_least("no_l1_epochs", no_l1_epochs, 0)
        self.epochs = None if epochs is None else at_least("epochs", epochs, 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the strategy, and that the run has the epochs of the decay."""
        if stage == "fit":
            epochs = self.epochs or trainer.max_epochs
            if epochs is None or epochs < max(1, self.no_l1_epochs):
                raise MisconfigurationException(
                    f"L1Sparse lets its penalty decay over epochs, the last {self.no_l1_epochs} without it, but "
                    f"max_epochs is {epochs}. Set max_epochs of the Trainer, or epochs of L1Sparse, to more than that."
                )
            strategy("L1Sparse", trainer, sharded=False, reason="sums over whole weights")
        super().setup(trainer, pl_module, stage)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Cross-entropy and penalty."""
        parts = super().step(module, batch)
        epochs = self.epochs or module.trainer.max_epochs
        assert epochs is not None
        gamma = l1_weight(self.gamma, module.trainer.current_epoch, epochs, no_l1_epochs=self.no_l1_epochs)
        norm = torch.stack([p.float().abs().sum() for p in module.parameters() if p.requires_grad]).sum()
        return {**parts, "loss": parts["loss"] + gamma * norm, "l1": norm, "l1_weight": norm.new_tensor(gamma)}
