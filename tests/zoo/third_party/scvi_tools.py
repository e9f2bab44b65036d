"""scvi-tools: a variational autoencoder of gene expression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scvi
from lightning.pytorch import Trainer
from scvi.dataloaders import AnnDataLoader
from scvi.train import TrainingPlan

from tests.zoo.third_party.case import Case


def nll(module, batch):
    loss = module(batch)[2]
    return loss.reconstruction_loss["reconstruction_loss"] + loss.kl_local["kl_divergence_z"]


def make() -> Case:
    rng = np.random.default_rng(0)
    rates = np.where(np.arange(160)[:, None] < 40, rng.gamma(1, 6, size=24), rng.gamma(1, 6, size=24))
    cells = anndata.AnnData(rng.poisson(rates).astype("float32"))
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, n_latent=3, n_hidden=32)
    model.train(max_epochs=40, accelerator="cpu", enable_progress_bar=False, logger=False)
    plan = TrainingPlan(model.module, lr=2e-3)
    loaders = {
        role: AnnDataLoader(model.adata_manager, indices=indices, batch_size=16, shuffle=True)
        for role, indices in {"forget": np.arange(40), "retain": np.arange(40, 160)}.items()
    }

    def load(path: Path) -> Any:
        return TrainingPlan.load_from_checkpoint(path, module=scvi.model.SCVI(cells, n_latent=3, n_hidden=32).module)

    return Case(plan, loaders, Trainer, nll, load)
