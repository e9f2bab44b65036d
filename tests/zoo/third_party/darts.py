"""darts: N-BEATS, a module of the package `pytorch_lightning`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from darts import TimeSeries
from darts.models import NBEATSModel
from darts.models.forecasting.torch_forecasting_model import _batch_collate_fn_train
from darts.utils.data.torch_datasets.training_dataset import SequentialTorchTrainingDataset
from darts.utils.data.torch_datasets.utils import ModuleStage
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from tests.zoo.third_party.case import QUIET, Case


def nll(module, batch):
    forecast = module(batch.to_module_input(stage=ModuleStage.TRAIN)).prediction[..., 0]
    return (forecast - batch.future_target).square().flatten(1).mean(1) / 2


def make() -> Case:
    days = np.arange(40, dtype="float32")
    series = [TimeSeries.from_values(np.sin(days / 3 + n) + (n < 4) * days / 4) for n in range(12)]
    model = NBEATSModel(
        input_chunk_length=12,
        output_chunk_length=4,
        n_epochs=30,
        num_stacks=2,
        num_blocks=1,
        layer_widths=32,
        optimizer_kwargs={"lr": 1e-3},
        pl_trainer_kwargs={"accelerator": "cpu", **QUIET},
    )
    model.fit(series)
    loaders = {
        role: DataLoader(
            SequentialTorchTrainingDataset(rows, input_chunk_length=12, output_chunk_length=4),
            batch_size=16,
            shuffle=True,
            collate_fn=_batch_collate_fn_train,
        )
        for role, rows in (("forget", series[:4]), ("retain", series[4:]))
    }

    def save(trainer: Trainer, path: Path) -> None:
        model.trainer = trainer
        model.save(str(path))

    return Case(
        model.model,
        loaders,
        Trainer,
        nll,
        lambda path: NBEATSModel.load(str(path)).model,
        save,
        options={"max_epochs": 1},
    )
