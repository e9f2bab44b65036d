"""gluonts: a feed-forward net that forecasts a distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gluonts.dataset.common import ListDataset
from gluonts.itertools import select
from gluonts.torch import SimpleFeedForwardEstimator
from lightning.pytorch import Trainer

from tests.zoo.third_party.case import QUIET, Case

# Its loaders draw other windows in every pass, and both are made of rows that are read before the run.
REFUSED = {"WAGLE": "gave other rows than the first time", "SSD": "gave other rows than the first time"}


def nll(module, batch):
    targets = {name: batch[name] for name in ("future_target", "future_observed_values")}
    return module.model.loss(**select(module.inputs, batch), **targets)


def make() -> Case:
    estimator = SimpleFeedForwardEstimator(
        prediction_length=4, context_length=8, batch_size=16, num_batches_per_epoch=8, hidden_dimensions=[32], lr=3e-3
    )
    days = np.arange(80)
    series = [{"start": "2026-01-01", "target": np.sin(days / 3 + n) + (n < 4) * days / 4} for n in range(12)]
    sets = {"forget": ListDataset(series[:4], freq="D"), "retain": ListDataset(series[4:], freq="D")}
    module = estimator.create_lightning_module()
    transformation = estimator.create_transformation()

    def loader(rows: ListDataset) -> Any:
        return estimator.create_training_data_loader(transformation.apply(rows, is_train=True), module)

    Trainer(max_epochs=20, accelerator="cpu", **QUIET).fit(module, loader(ListDataset(series, freq="D")))
    loaders = {role: loader(rows) for role, rows in sets.items()}

    def load(path: Path) -> Any:  # as the package itself does after training
        untrained = estimator.create_lightning_module()
        untrained.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        return untrained

    return Case(module, loaders, Trainer, nll, load)
