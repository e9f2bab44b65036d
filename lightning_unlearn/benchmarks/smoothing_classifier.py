"""A classifier in the comparison of smoothing: it forgets a class, and relearns it from a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_unlearn.benchmarks.classification import TrainCell, data, load
from lightning_unlearn.benchmarks.grid import Outcome
from lightning_unlearn.benchmarks.smoothing_runs import Curve, Forgetting, SmoothingCell, Subject, perform
from lightning_unlearn.classification.metrics.accuracy import accuracy
from lightning_unlearn.classification.metrics.outputs import collect_outputs
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.scores import Batch, classifier_nll
from lightning_unlearn.functional.quantization import QUANTIZATION_SCHEMES, round_weight
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.attacks.swapping import exchanged
from lightning_unlearn.relearning import RelearningAttack

__all__ = ["ClassifierCell", "ClassifierSubject", "unlearn"]


@dataclass(frozen=True, kw_only=True)
class ClassifierCell(SmoothingCell, TrainCell):
    """A classifier, its starting weights and the attack.

    Args:
        start: File of the starting weights in the folder, named by their hash.
        taught: Number of forget rows that are taught again; the forgotten share is measured on the others.
        attack_lr: Learning rate of SGD without momentum; each update uses all taught rows.
        attack_steps: Updates of the attack; it is measured after each.
    """

    start: str
    taught: int = 10
    attack_lr: float = 0.003
    attack_steps: int = 40


class ClassifierSubject(Subject):
    """A classifier and its rows."""

    module: LightningModule

    def __init__(self, cell: ClassifierCell, folder: Path) -> None:
        super().__init__(load(cell, folder / cell.start, cell.setting.lr), data(cell), gradient_clip_val=1.0)
        self.cell, rows = cell, self.data.sets["forget"]
        order = torch.randperm(len(rows), generator=keyed_generator(cell.seed)).tolist()
        self.rows = _batches(rows, range(len(rows)))
        self.taught, self.others = (_batches(rows, part) for part in (order[: cell.taught], order[cell.taught :]))

    def forgetting(self, module: LightningModule) -> Forgetting:
        """Mean negative log-likelihood and error."""
        outputs = collect_outputs(module, {"forget": self.rows})["forget"]
        nll = torch.nn.functional.cross_entropy(*outputs)
        return Forgetting(float(nll), 1 - float(accuracy(*outputs)) / 100)

    def forget_nll(self, module: LightningModule) -> Tensor:
        """Mean over the rows."""
        return torch.cat([classifier_nll(module, batch) for batch in self.rows]).mean()

    def utility(self, run: Trainer) -> dict[str, float]:
        """Accuracy on retain rows and on test rows of the classes that stay."""
        loaders = {name: self.data.set_loaders()[name] for name in ("retain", "test")}
        outputs = collect_outputs(self.module, loaders)
        found = {name: float(accuracy(*part)) / 100 for name, part in outputs.items()}
        return {**found, "utility": found["test"]}

    def relearned(self) -> Curve:
        """Error on the forget rows that are not taught, after each update."""
        attack = RelearningAttack(
            partial(torch.optim.SGD, lr=self.cell.attack_lr),
            max_steps=self.cell.attack_steps,
            metric=self._error_of_others,
            seed=self.cell.seed,
        )
        curve = attack(self.module, self.taught)
        return Curve(curve.steps, curve.values)

    def rounded(self) -> float:
        """Error on all forget rows with the weights of the linear layers rounded in groups of 64."""
        scheme = QUANTIZATION_SCHEMES["int4"]
        layers = [layer for layer in self.module.modules() if isinstance(layer, nn.Linear)]
        weights = {layer: round_weight(layer.weight, scheme) for layer in layers}
        with exchanged((layer, "weight", weight) for layer, weight in weights.items()):
            return self.forgetting(self.module).share

    def _error_of_others(self, module: LightningModule) -> float:
        return 1 - float(accuracy(*collect_outputs(module, {"forget": self.others})["forget"])) / 100


def unlearn(cell: ClassifierCell, folder: Path) -> Outcome:
    """Unlearn up to the level, measure and attack."""
    return perform(cell, ClassifierSubject(cell, folder))


def _batches(rows: object, numbers: Sequence[int], size: int = 512) -> list[Batch]:
    return list(DataLoader(Subset(rows, list(numbers)), batch_size=size))  # type: ignore[arg-type]
