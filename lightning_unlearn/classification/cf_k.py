"""CF-k: catastrophic forgetting of the last k layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from lightning_unlearn.classification.fine_tune import FineTune
from lightning_unlearn.core.batch_norm import has_batch_statistics
from lightning_unlearn.core.checks import at_least, regex
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Score, classifier_nll

__all__ = ["CFk"]


class CFk(FineTune):
    r"""Catastrophic forgetting of the last k layers: fine-tuning on retain rows with all other layers frozen.

    $$\min_{\theta_{L-k+1}, \dots, \theta_L} \frac{1}{|B_r|} \sum_r \ell_r$$

    Frozen weights stay bit-identical, and batch normalization in frozen layers stays in evaluation mode. The optimizer
    may hold all weights. After the run, weights that were trainable before it are trainable again. The released code
    uses SGD with a learning rate of 0.01 and 10 epochs.

    Args:
        k: Number of blocks to train, counted from the last one, which must be both defined and called last. Blocks are
            the children with weights of the first submodule that has several such children: for a torchvision ResNet,
            ``k=2`` is ``layer4`` and ``fc``.
        layers: Regular expression to use instead of ``k``; parameters whose names it matches are trained.
        score: Reads likelihoods from the module; ``training_step_loss`` uses the module's own loss.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If not exactly one of ``k`` and ``layers`` is given, or the given one is invalid.
        MisconfigurationException: If all weights or none would be trained, or the blocks defined last are not called
            last.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[CFk(layers=r"layer4|fc")], max_epochs=10, logger=False, accelerator="cpu")

    References:
        Goel et al., *Towards Adversarial Evaluations for Inexact Machine Unlearning*, arXiv:2201.06640.
    """

    def __init__(
        self,
        k: int | None = None,
        layers: str | None = None,
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(score)
        self.keep_reference = keep_reference
        if (k is None) == (layers is None):
            raise ValueError(f"Give either k or layers, but got k={k} and layers={layers!r}.")
        self.k = None if k is None else at_least("k", k, 1)
        self.layers = None if layers is None else regex("layers", layers)
        self._pattern = re.compile("")
        self._frozen: list[nn.Parameter] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze the other layers before optimizers and strategies read ``requires_grad``."""
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the blocks defined last are also called last in the forward pass."""
        super().on_train_start(trainer, pl_module)
        loader = row_loader(trainer.train_dataloader, "retain")
        if self.k is None or loader is None:
            return
        calls: list[str] = []
        blocks = _blocks(pl_module).children

        def watch(name: str) -> Callable[..., None]:
            return lambda *_: calls.append(name)

        handles = [block.register_forward_hook(watch(name)) for name, block in blocks.items()]
        try:
            self._check_rows(trainer, pl_module)
        finally:
            for handle in handles:
                handle.remove()
        called = sorted(set(calls), key=lambda name: len(calls) - calls[::-1].index(name))
        if calls and set(called[-self.k :]) != set(list(blocks)[-self.k :]):
            raise MisconfigurationException(
                f"{type(self).__name__} trains the last k={self.k} blocks, but {list(blocks)[-self.k :]}, which "
                f"{type(pl_module).__name__} defines last, are not those that its forward pass calls last, "
                f"{called[-self.k :]}. Name the layers to train by layers=."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the statistics of frozen layers again, because the user may have called ``train()``."""
        super().on_train_epoch_start(trainer, pl_module)
        for name, child in pl_module.named_modules():
            if has_batch_statistics(child) and child.training and not self._trains(f"{name}.weight"):
                child.eval()
                self._thawed.append(child)

    def _trains(self, name: str) -> bool:
        return self._pattern.search(name) is not None

    def _last_blocks(self, module: nn.Module) -> str:
        """A regular expression that matches the parameters of the last k blocks."""
        prefix, module, blocks = _blocks(module)
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


class _Blocks(NamedTuple):
    """The first submodule with several children that have weights: its name with a dot, itself, and the children."""

    prefix: str
    parent: nn.Module
    children: dict[str, nn.Module]


def _blocks(module: nn.Module) -> _Blocks:
    prefix, blocks = "", _with_weights(module)
    while len(blocks) == 1 and len(list(module.parameters(recurse=False))) == 0:
        ((name, module),) = blocks.items()
        prefix, blocks = f"{prefix}{name}.", _with_weights(module)
    return _Blocks(prefix, module, blocks)


def _with_weights(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if next(child.parameters(), None) is not None}
