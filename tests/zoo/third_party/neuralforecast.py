"""neuralforecast: N-HiTS, a module of the package `pytorch_lightning`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from neuralforecast.models import NHITS
from neuralforecast.tsdataset import TimeSeriesDataset, TimeSeriesLoader
from pytorch_lightning import Trainer

from tests.zoo.third_party.case import QUIET, Case


def nll(module, batch):
    series = batch["temporal"][:, batch["y_idx"], :, None]
    inputs, targets = series[:, -12:-4], series[:, -4:]
    windows = {"insample_y": inputs, "insample_mask": torch.ones_like(inputs)}
    forecast = module(windows | dict.fromkeys(("futr_exog", "hist_exog", "stat_exog")))
    return (forecast - targets).abs().flatten(1).mean(1)


def series(shops: range) -> TimeSeriesDataset:
    days = pd.date_range("2026-01-01", periods=40)
    table = pd.DataFrame(
        [
            {"unique_id": str(n), "ds": day, "y": np.sin(t / 3 + n) + (n < 8) * t / 4}
            for n in shops
            for t, day in enumerate(days)
        ]
    )
    return TimeSeriesDataset.from_df(table)[0]


def make() -> Case:
    sets = {"forget": series(range(8)), "retain": series(range(8, 24))}
    module = NHITS(h=4, input_size=8, max_steps=60, mlp_units=[[32, 32]] * 3, learning_rate=3e-3, accelerator="cpu")
    loaders = {role: TimeSeriesLoader(rows, batch_size=4, shuffle=True) for role, rows in sets.items()}
    everything = TimeSeriesLoader(series(range(24)), batch_size=4, shuffle=True)
    Trainer(max_epochs=40, accelerator="cpu", **QUIET).fit(module, everything)
    return Case(module, loaders, Trainer, nll, NHITS.load, save=lambda trainer, path: module.save(str(path)))
