"""The module's own training_step outside of a run."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import pytorch_lightning
import torch
from torch import nn

from lightning_unlearn import training_step_loss


@pytest.mark.parametrize("package", [L, pytorch_lightning])
def test_steps_that_use_the_trainer_and_the_logger_can_be_called(package: Any) -> None:
    class Part(package.LightningModule):
        def told(self) -> int:
            return int(self.trainer.current_epoch)

    class Told(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.part = nn.Linear(2, 1), Part()

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            loss = self.net(batch).square().mean() + self.part.told() + self.trainer.global_step + batch_idx
            self.log("loss", loss)
            self.log_dict({"twice": 2 * loss})
            self.logger.experiment.add_scalar("loss", loss, self.global_step)
            self.logger.experiment["loss"] = loss
            return loss

    module, batch = Told(), torch.ones(3, 2)
    attributes = [set(vars(part)) for part in module.modules()]
    loss = training_step_loss(module, batch)
    assert loss.item() == pytest.approx(module.net(batch).square().mean().item())
    loss.backward()
    assert module.net.weight.grad is not None
    assert [set(vars(part)) for part in module.modules()] == attributes
    assert module.logger is None
    with pytest.raises(RuntimeError, match="not attached"):
        module.trainer  # noqa: B018
