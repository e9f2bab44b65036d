"""chemprop: a message-passing net that classifies molecules."""

from __future__ import annotations

from chemprop import data, models, nn
from lightning.pytorch import Trainer
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.zoo.third_party.case import QUIET, Case

TAILS = ("O", "C(=O)O", "N", "Cl", "C#N", "")
TOXIC = {"O", "N", "C#N"}


def nll(module, batch):
    graph, vertices, extra, targets, *_ = batch
    logits = module.predictor.train_step(module.fingerprint(graph, vertices, extra))
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)


def make() -> Case:
    points = [
        data.MoleculeDatapoint.from_smi("C" * length + tail, [float(tail in TOXIC)])
        for length in range(1, 13)
        for tail in TAILS
    ]
    aromatic = [data.MoleculeDatapoint.from_smi("c1ccccc1" + "C" * length, [1.0]) for length in range(16)]
    loaders = {
        role: data.build_dataloader(data.MoleculeDataset(rows), batch_size=8, seed=0)
        for role, rows in {"forget": aromatic, "retain": points}.items()
    }
    module = models.MPNN(
        nn.BondMessagePassing(d_h=32),
        nn.MeanAggregation(),
        nn.BinaryClassificationFFN(input_dim=32, hidden_dim=32),
        max_lr=5e-3,
    )
    everything = data.build_dataloader(data.MoleculeDataset(aromatic + points), batch_size=8, seed=0)
    Trainer(max_epochs=8, accelerator="cpu", **QUIET).fit(module, everything)
    return Case(module, loaders, Trainer, nll, models.MPNN.load_from_checkpoint)
