"""Boundary expand: training forget rows as an additional class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.classification.features import find_head, head_of, last_rows
from lightning_unlearn.classification.objective import (
    BatchNormMode,
    ClassifierObjective,
    batch_accuracy,
    check_one_label,
)
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import strategy
from lightning_unlearn.core.distributed import mean_over_ranks
from lightning_unlearn.core.layers import watching
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["BoundaryExpand"]


class BoundaryExpand(ClassifierObjective):
    r"""Boundary expand: trains forget rows as an additional class, which is dropped when training ends.

    $$\mathcal{L} = \frac{1}{|B_f|} \sum_f -\log \mathrm{softmax}\big([h_\theta(x),\ w^\top u + b]\big)_{K+1}$$

    $u$ is the input of the head. The callback owns the parameters $w, b$ of the new class, which are initialized like
    those of a linear layer; the optimizer trains them in the parameter group of the head, and they are saved with the
    callback's state. The module therefore keeps its $K$ logits throughout, and nothing has to be pruned. Retain rows
    are read only for batch normalization statistics. The released code uses SGD with a learning rate of 1e-5, momentum
    of 0.9, and 10 epochs of forget rows.

    Args:
        head: The linear layer that gives the logits: the end of its dotted name, or a regular expression that matches
            exactly one name. By default the last ``nn.Linear`` of the module.
        seed: Seed of the parameters of the new class.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"`` (the released code), see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        MisconfigurationException: If the head is not found, is not trainable or does not give the logits, or weights
            are sharded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BoundaryExpand(head="fc")], logger=False, accelerator="cpu")

    References:
        Chen et al., *Boundary Unlearning*, arXiv:2303.11570.
    """

    driver = "forget"

    needs = Needs()
    inseparable = "trains a class of its own, whose weights are not the module's"

    private = ("snapshot", "caches", "row")

    def __init__(
        self,
        head: str | None = None,
        seed: int = 0,
        bn_mode: BatchNormMode = "joint",
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(bn_mode, score)
        self.keep_reference = keep_reference
        self.head, self.seed = head, seed
        self.row: nn.Linear | None = None
        """The new class, once a run has begun."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read retain rows only if joint batch normalization statistics need them."""
        super().on_train_start(trainer, pl_module)
        self.needs = replace(self.needs, roles=("forget", "retain") if self._joint_statistics else ("forget",))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the strategy."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            strategy("BoundaryExpand", trainer, sharded=False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the new row to the optimizer before the optimizer's state is restored."""
        name, head = find_head("BoundaryExpand", pl_module, self.head)
        # Where the head is parametrized, as by weight normalization, its weight is made of other parameters.
        own = {id(parameter) for name, parameter in head.named_parameters() if name != "bias"}
        groups = [g for o in trainer.optimizers for g in o.param_groups if any(id(p) in own for p in g["params"])]
        if len(groups) != 1:
            raise MisconfigurationException(
                f"BoundaryExpand trains its new class with the head {name!r}, but {len(groups)} groups of the "
                "optimizer hold the head. Let the optimizer train the head, or name another."
            )
        self.row = _new_row(head, self.seed)
        if self._state is not None:
            self.row.load_state_dict(self._state["row"])
        # Learning rate schedulers already exist and would not know about a parameter group of its own.
        groups[0]["params"] += self.row.parameters()
        if "param_names" in groups[0]:
            groups[0]["param_names"] += [f"BoundaryExpand.{n}" for n, _ in self.row.named_parameters()]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Average the new row's gradient over processes, because DDP does not know about it."""
        assert self.row is not None
        for parameter in self.row.parameters():
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Cross-entropy of the forget rows with the new class as their label."""
        assert self.row is not None
        name, head = find_head("BoundaryExpand", module, self.head)
        with watching(head) as calls:
            (forget,) = self.predictions(module, batch, ("forget",))
        check_one_label("BoundaryExpand", "trains forget rows as one more class", forget)
        count, classes = forget.logits.shape
        if self._steps == 0:
            self._check_gives_logits(module, name, last_rows(name, calls.outputs, count), forget, batch["forget"])
        logits = torch.cat([forget.logits, self.row(last_rows(name, calls.inputs, count))], dim=1)
        loss = self.row_mean(token_nll(logits, torch.full_like(forget.classes(), classes)))
        return {"loss": loss, "forget_accuracy": batch_accuracy(forget)}

    def _check_gives_logits(
        self, module: LightningModule, name: str, outputs: Tensor, forget: Predictions, batch: Batch
    ) -> None:
        logits = forget.logits
        if outputs.shape == logits.shape and torch.equal(outputs.to(logits.dtype), logits):
            return
        assert isinstance(self.score, PredictionScore)
        found = head_of(module, self.score, batch)
        way = (
            f"Pass head={found[0]!r}, which does."
            if found and found[0] != name
            else ("Name the linear layer that gives them with head=..., and let the module return them unchanged.")
        )
        raise MisconfigurationException(
            f"BoundaryExpand adds a logit to those of the head, but the output of {name!r}, of shape "
            f"{tuple(outputs.shape)}, is not the logits of shape {tuple(logits.shape)}. {way}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The method's name and the new row."""
        row = {} if self.row is None else {k: v.to("cpu", copy=True) for k, v in self.row.state_dict().items()}
        return {**super().state_dict(), "row": row}


def _new_row(head: nn.Linear, seed: int) -> nn.Linear:
    row = nn.Linear(head.in_features, 1, head.bias is not None, device="meta", dtype=head.weight.dtype)
    row = row.to_empty(device="cpu")  # draws nothing from the run's random generator
    generator, bound = torch.Generator().manual_seed(seed), head.in_features**-0.5
    for parameter in row.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return row.to(head.weight.device)
