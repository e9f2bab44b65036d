"""pytorch-forecasting: N-BEATS on a table of series."""

from __future__ import annotations

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer
from pytorch_forecasting import NBeats, TimeSeriesDataSet

from tests.zoo.third_party.case import QUIET, Case


def nll(module, batch):
    x, (y, _) = batch
    return (module(x)["prediction"].squeeze(-1) - y).square().mean(1) / 2


def series(shops: range) -> TimeSeriesDataSet:
    table = pd.DataFrame(
        [{"day": t, "shop": str(n), "sold": np.sin(t / 3 + n) + (n < 4) * t / 4} for n in shops for t in range(40)]
    )
    return TimeSeriesDataSet(
        table,
        time_idx="day",
        target="sold",
        group_ids=["shop"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["sold"],
        target_normalizer=None,
        scalers={},
    )


def make() -> Case:
    sets = {"forget": series(range(4)), "retain": series(range(4, 12))}
    everything = series(range(12))
    module = NBeats.from_dataset(everything, widths=[32, 32], learning_rate=3e-3)
    loaders = {role: rows.to_dataloader(train=True, batch_size=16, num_workers=0) for role, rows in sets.items()}
    loader = everything.to_dataloader(train=True, batch_size=16, num_workers=0)
    Trainer(max_epochs=12, accelerator="cpu", **QUIET).fit(module, loader)
    return Case(module, loaders, Trainer, nll, NBeats.load_from_checkpoint, options={"max_epochs": 1})
