"""fp16 with a gradient scaler: its logic with a fake here, the real thing on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_unlearn import NPO, classifier_nll
from tests.helpers import trainer, weights
from tests.user_module import LitNet, loaders


def test_an_overflow_is_left_to_the_gradient_scaler() -> None:
    module = LitNet()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    optimizer = module.configure_optimizers()

    def run(scaler: Any) -> Any:
        plugin = SimpleNamespace(scaler=scaler)
        return SimpleNamespace(
            precision_plugin=plugin,
            checkpoint_callback=None,
            global_step=7,
            current_epoch=1,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_idx=3)),
        )

    method = NPO(score=classifier_nll)
    method.on_before_optimizer_step(run(scaler=object()), module, optimizer)
    with pytest.raises(FloatingPointError, match=r"step 7 \(epoch 1, batch 3\)"):
        method.on_before_optimizer_step(run(scaler=None), module, optimizer)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_on_a_gpu(precision: Any) -> None:
    module = LitNet()
    before = weights(module)
    run = trainer(NPO(score=classifier_nll), max_epochs=2, accelerator="gpu", precision=precision)
    run.fit(module, loaders())
    assert run.callback_metrics["unlearn/loss"].isfinite()
    assert not torch.equal(weights(module.cpu()), before)
