"""Training the last layers alone, from where they are or anew."""

from __future__ import annotations

import re

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_unlearn.classification.fine_tune import FineTune
from lightning_unlearn.classification.untrained import ModuleInit, check_untrained, initialize, untrained_values
from lightning_unlearn.core.scores import Score, classifier_nll

__all__ = ["CFk", "EUk"]


class CFk(FineTune):
    r"""Catastrophic forgetting of the last k layers: fine-tuning on retain rows with all other layers frozen.

    $$\min_{\theta_{L-k+1}, \dots, \theta_L} \frac{1}{|B_r|} \sum_r \ell_r$$

    Frozen weights are the same bits afterwards, and batch normalization in frozen layers stays in evaluation mode.
    The optimizer may have been made over all weights. After the run, what was trainable is trainable again. Released
    code takes SGD with a learning rate of 0.01 and 10 epochs.

    Args:
        k: Number of blocks to train, counted from the last one defined. Blocks are the children with weights of the
            first submodule that has several: for a ResNet of torchvision, ``k=2`` is ``layer4`` and ``fc``.
        layers: Regular expression in place of ``k``; parameters whose name it is found in train.
        score: Reads predictions off the module.

    Raises:
        ValueError: If not exactly one of ``k`` and ``layers`` is given, or one is not usable.
        MisconfigurationException: If all weights or none would train.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[CFk(layers=r"layer4|fc")], max_epochs=10, logger=False, accelerator="cpu")

    References:
        Goel et al., *Towards Adversarial Evaluations for Inexact Machine Unlearning*, arXiv:2201.06640.
    """

    def __init__(self, k: int | None = None, layers: str | None = None, score: Score = classifier_nll) -> None:
        super().__init__(score)
        if (k is None) == (layers is None):
            raise ValueError(f"Give either k or layers, but got k={k} and layers={layers!r}.")
        if k is not None and k < 1:
            raise ValueError(f"k must be at least 1, but got {k}.")
        try:
            re.compile(layers or "")
        except re.error as error:
            raise ValueError(f"layers={layers!r} is no regular expression: {error}.") from error
        self.k, self.layers = k, layers
        self._pattern = re.compile("")
        self._frozen: list[nn.Parameter] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze what does not train: optimizers and strategies look at ``requires_grad`` after this."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._pattern = re.compile(self.layers if self.layers is not None else self._last_blocks(pl_module))
        trainable = {n: p for n, p in pl_module.named_parameters() if p.requires_grad}
        frozen = {n: p for n, p in trainable.items() if not self._trains(n)}
        if len(frozen) in (0, len(trainable)):
            raise MisconfigurationException(
                f"{type(self).__name__}(k={self.k}, layers={self.layers!r}) would train "
                f"{len(trainable) - len(frozen)} of {len(trainable)} parameters, but it trains some and freezes "
                f"others. Their names begin with {sorted({n.rpartition('.')[0] for n in trainable})[:8]}."
            )
        for parameter in frozen.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        self._frozen = list(frozen.values())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the statistics of frozen layers, should someone have called ``train()``."""
        super().on_train_epoch_start(trainer, pl_module)
        for name, child in pl_module.named_modules():
            if isinstance(child, _BatchNorm) and child.training and not self._trains(f"{name}.weight"):
                child.eval()
                self._thawed.append(child)

    def _trains(self, name: str) -> bool:
        return self._pattern.search(name) is not None

    def _last_blocks(self, module: nn.Module) -> str:
        """A regular expression for the parameters of the last k blocks."""
        prefix, blocks = "", _with_weights(module)
        while len(blocks) == 1 and len(list(module.parameters(recurse=False))) == 0:
            ((name, module),) = blocks.items()
            prefix, blocks = f"{prefix}{name}.", _with_weights(module)
        if self.k is None or self.k >= len(blocks):
            raise MisconfigurationException(
                f"{type(self).__name__} freezes all but the last k={self.k} blocks, but {type(module).__name__} has "
                f"{len(blocks)}: {list(blocks)}. Choose a smaller k, or name the layers to train by layers=."
            )
        names = "|".join(re.escape(name) for name in list(blocks)[-self.k :])
        return rf"^{re.escape(prefix)}({names})\."

    def _give_back(self, module: LightningModule) -> None:
        super()._give_back(module)
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []


class EUk(CFk):
    r"""Exact unlearning of the last k layers: they are initialized anew and trained on retain rows, the others frozen.

    $$\theta_{L-k+1}, \dots, \theta_L \leftarrow \theta_{init}, \quad \text{then} \quad
    \min_{\theta_{L-k+1}, \dots, \theta_L} \frac{1}{|B_r|} \sum_r \ell_r$$

    As [`CFk`][lightning_unlearn.CFk], with new weights, and new statistics of batch normalization, before the
    first step. Take as many epochs as the model was trained for. The released code returns to the stored initial
    weights of the model: ``module_init`` may do so.

    Args:
        k: Number of blocks to train, counted from the last one defined.
        layers: Regular expression in place of ``k``; parameters whose name it is found in train.
        module_init: Makes the module anew; needed where a layer that trains has no ``reset_parameters``.
        seed: Seed of the new weights.
        score: Reads predictions off the module.

    Raises:
        ValueError: If not exactly one of ``k`` and ``layers`` is given, or one is not usable.
        MisconfigurationException: If all weights or none would train, or a layer can't be initialized anew.

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
    ) -> None:
        super().__init__(k, layers, score)
        self.module_init, self.seed = module_init, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the layers to train can be initialized anew."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_untrained("EUk", trainer, pl_module, self.module_init, self._trains)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the last layers anew: after every callback's ``on_train_start``, where monitors measure."""
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.global_step == 0:
            values = untrained_values(pl_module, self.seed, self.module_init)
            initialize(pl_module, {name: value for name, value in values.items() if self._trains(name)})


def _with_weights(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if next(child.parameters(), None) is not None}
