"""EU-k: exact unlearning of the last k layers."""

from __future__ import annotations

from lightning_unlearn.classification.cf_k import CFk
from lightning_unlearn.classification.untrained import ModuleInit, check_untrained, initialize, untrained_values
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.scores import Score, classifier_nll

__all__ = ["EUk"]


class EUk(CFk):
    r"""Exact unlearning of the last k layers: resets them and trains them on retain rows, with all others frozen.

    $$\theta_{L-k+1}, \dots, \theta_L \leftarrow \theta_{init}, \quad \text{then} \quad
    \min_{\theta_{L-k+1}, \dots, \theta_L} \frac{1}{|B_r|} \sum_r \ell_r$$

    This is [`CFk`][lightning_unlearn.CFk] with new weights and new batch normalization statistics before the first
    step. Train for as many epochs as the model was trained for. The released code returns to the stored initial weights
    of the model, which ``module_init`` can load.

    Args:
        k: Number of blocks to train, counted from the last one defined.
        layers: Regular expression to use instead of ``k``; parameters whose names it matches are trained.
        module_init: Makes an untrained module; needed if a layer to train has no ``reset_parameters``.
        seed: Seed of the new weights.
        score: Reads likelihoods from the module; ``training_step_loss`` uses the module's own loss.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If not exactly one of ``k`` and ``layers`` is given, or the given one is invalid.
        MisconfigurationException: If all weights or none would be trained, or a layer can't be reset.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EUk(k=2)], max_epochs=10, logger=False, accelerator="cpu")

    References:
        Goel et al., *Towards Adversarial Evaluations for Inexact Machine Unlearning*, arXiv:2201.06640.
    """

    def __init__(
        self,
        k: int | None = None,
        layers: str | None = None,
        module_init: ModuleInit | None = None,
        seed: int = 0,
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(k, layers, score)
        self.keep_reference = keep_reference
        self.module_init, self.seed = module_init, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the layers to train can be reset."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_untrained("EUk", trainer, pl_module, self.module_init, self._trains)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the last layers, after every ``on_train_start``: monitors measure the original model there."""
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.global_step == 0:
            self._check_rows(trainer, pl_module)
            values = untrained_values(pl_module, self.seed, self.module_init, self._trains)
            initialize(pl_module, {name: value for name, value in values.items() if self._trains(name)})
