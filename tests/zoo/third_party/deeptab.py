"""deeptab: a tabular classifier with scikit-learn's interface."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from deeptab.models import MLPClassifier
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset

from tests.zoo.third_party.case import QUIET, Case


def nll(module, batch):
    data, labels = batch
    return cross_entropy(module(*data), labels, reduction="none")


def make() -> Case:
    centers = np.random.default_rng(0).normal(size=(3, 4)) * 2
    kinds = np.arange(300) % 3
    table = pd.DataFrame(centers[kinds] + np.random.default_rng(1).normal(size=(300, 4)), columns=list("abcd"))
    classifier = MLPClassifier(random_state=0)
    with tempfile.TemporaryDirectory() as folder:
        options = QUIET | {"enable_checkpointing": True, "accelerator": "cpu", "checkpoint_path": folder}
        classifier.fit(table, kinds, max_epochs=15, lr=1e-2, batch_size=32, **options)
    module, rows = classifier._task_model, classifier._data_module.train_dataset
    labels = np.array([int(label) for _, label in rows])
    loaders = {
        "forget": DataLoader(Subset(rows, np.flatnonzero(labels == 0).tolist()), batch_size=16, shuffle=True),
        "retain": DataLoader(Subset(rows, np.flatnonzero(labels != 0).tolist()), batch_size=16, shuffle=True),
    }

    untrained = copy.deepcopy(module)

    def load(path: Path) -> Any:  # as the package itself does after training
        untrained.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
        return untrained

    return Case(
        module, loaders, Trainer, nll, load, fit={"val_dataloaders": loaders["retain"]}, options={"max_epochs": 1}
    )
