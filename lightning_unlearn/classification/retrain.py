"""Retraining from scratch without the forget rows."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.classification.objective import check_epoch
from lightning_unlearn.classification.untrained import (
    ModuleInit,
    buffers_without_reset,
    check_untrained,
    initialize,
    untrained_values,
)
from lightning_unlearn.core.callback import Needs, UnlearnCallback
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.scores import Batch, Score, training_step_loss

__all__ = ["Retrain"]


class Retrain(UnlearnCallback):
    r"""Retraining: new weights, trained on the retain rows only; the standard against which other methods are measured.

    $$\theta_r = \mathrm{train}(\theta_{init},\, D_r)$$

    Before the first step, every weight and buffer is replaced by that of an untrained module: the one that
    ``module_init`` makes or, by default, this module after the ``reset_parameters`` of each layer, nested ones
    included. From then on, each batch of retain rows goes through the module's own ``training_step``, with its own
    optimizer. Use the epochs, batch size and schedule of the original training run, with
    ``ForgetRetainDataModule(epoch="retain")`` or ``trainer.fit(module, {"retain": loader})``. A resumed run keeps the
    weights of its checkpoint.

    Args:
        module_init: Makes an untrained module; needed if a layer has no ``reset_parameters``, such as the norm layers
            of Hugging Face models, or if the module has frozen weights.
        seed: Seed of the new weights.
        score: The loss of a batch of retain rows; by default that of the module's ``training_step``.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        MisconfigurationException: If a layer or a buffer that changes in training can't be reset, a weight is frozen
            and there is no ``module_init``, or weights are sharded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Retrain(seed=1)], max_epochs=30, logger=False, accelerator="cpu")

    References:
        Cao and Yang, *Towards Making Systems Forget with Machine Unlearning*, IEEE S&P 2015.
        Golatkar et al., *Eternal Sunshine of the Spotless Net*, arXiv:1911.04933.
    """

    needs = Needs(roles=("retain",))
    inseparable = "reads no forget rows"
    fills_windows = False  # it trains in the same way as the module was trained

    def __init__(
        self,
        module_init: ModuleInit | None = None,
        seed: int = 0,
        score: Score = training_step_loss,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(score)
        self.keep_reference = keep_reference
        self.module_init, self.seed = module_init, seed
        self._kept: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module can be reset."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_untrained("Retrain", trainer, pl_module, self.module_init)
        frozen = [name for name, p in pl_module.named_parameters() if not p.requires_grad]
        if frozen and self.module_init is None:
            raise MisconfigurationException(
                f"Retrain starts from the weights that training started from, but {len(frozen)} weights are frozen, "
                f"such as {frozen[0]!r}, and may or may not have been trained. Pass module_init, a function that makes "
                "the module as it was."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch with that of the original training run."""
        super().on_train_start(trainer, pl_module)
        check_epoch("Retrain", "retain", trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the module, after every ``on_train_start``: monitors measure the trained module there."""
        if trainer.global_step == 0:
            initialize(pl_module, untrained_values(pl_module, self.seed, self.module_init))
            self._kept = buffers_without_reset(pl_module) if self.module_init is None else {}

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The module's own loss on retain rows."""
        (retain,) = self.read(module, [batch["retain"]])
        self._check_buffers(module)
        return {"loss": self.token_mean(retain.nll, torch.ones_like(retain.nll))}

    def _check_buffers(self, module: LightningModule) -> None:
        """Refuse buffers that learn, and still hold what the trained model had in them."""
        kept, self._kept = self._kept, {}
        buffers = dict(module.named_buffers())
        learns = [name for name, value in kept.items() if name in buffers and not torch.equal(buffers[name], value)]
        if learns:
            raise MisconfigurationException(
                f"Retrain needs an untrained module, but the buffer {learns[0]!r} changes in training and its module "
                "has no reset_parameters() to initialize it, so it begins with what it had learned. Add it, or pass "
                "module_init, a function that makes an untrained module."
            )
