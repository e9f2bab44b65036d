"""Measures a classifier that stands still, saves the numbers: `run_classifier_monitor.py <launcher> <folder>`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_unlearn import ClassifierMonitor, ForgetRetainDataModule, NegGradPlus
from tests.distributed.run_classification import Net, rows

torch.set_num_threads(1)


class Still(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def main(launcher: str, folder: Path) -> None:
    processes = 1 if launcher == "one" else 2
    L.seed_everything(0, verbose=False)
    module = Still()
    if launcher == "one":
        torch.save({name: -value for name, value in module.state_dict().items()}, folder / "retrained.pt")
    # Sets that two processes can't share evenly, and one that has a row for the first alone.
    data = ForgetRetainDataModule(rows(13, 1), rows(19, 2), {"test": rows(9, 3), "few": rows(1, 4)}, batch_size=4)
    monitor = ClassifierMonitor(retrained=folder / "retrained.pt", shadow="first", features=["confidence", "prob"])
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="auto" if processes == 1 else "ddp",
        callbacks=[NegGradPlus(), monitor],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    (validated, *_) = trainer.validate(module, data, verbose=False)
    found = {"history": [e.metrics for e in monitor.history], "reference": monitor.reference, "validate": validated}
    (folder / f"{launcher}-{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
