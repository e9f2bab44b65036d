"""Forget term of the live and of the quantised model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_unlearn import QuantizationAware
from lightning_unlearn.functional import round_weight
from lightning_unlearn.functional.quantization import QUANTIZATION_SCHEMES
from lightning_unlearn.smoothing.quantization_aware import weighted_mean
from tests.helpers import weights
from tests.smoothing.test_strategies import FORGET, RETAIN, ascent, fit, gradient
from tests.user_module import seeded


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_quantised_and_the_live_model_are_weighted(weight: float) -> None:
    callback = QuantizationAware("int4", weight=weight)
    module, run = fit(callback, max_steps=1, limit_train_batches=1)
    by_hand, rounded, (forget, retain) = seeded(), seeded(), (next(iter(loader)) for loader in (FORGET, RETAIN))
    with torch.no_grad():
        for layer in rounded.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(round_weight(layer.weight, QUANTIZATION_SCHEMES["int4"]))
    losses = ascent(by_hand, forget), ascent(rounded, forget)
    mean = torch.lerp(gradient(by_hand, losses[0]), gradient(rounded, losses[1]), weight)
    kept = gradient(by_hand, -ascent(by_hand, retain))
    start = weights(seeded())
    update = mean + kept + 0.1 * start  # weight decay
    torch.testing.assert_close(weights(module), start - 0.05 * update)
    assert run.callback_metrics["unlearn/forget"].item() == pytest.approx(losses[0 if weight < 1 else 1].item())


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_the_weight_of_the_quantised_model_is_a_share(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be"):
        QuantizationAware(weight=weight)


def test_a_gradient_that_only_one_of_the_passes_has_counts_with_its_weight() -> None:
    one = torch.ones(2)
    assert weighted_mean(None, None, 0.25) is None
    assert torch.equal(weighted_mean(None, one.clone(), 0.25), torch.full((2,), 0.25))  # type: ignore[arg-type]
    assert torch.equal(weighted_mean(one.clone(), None, 0.25), torch.full((2,), 0.75))  # type: ignore[arg-type]
    assert torch.equal(weighted_mean(one.clone(), 5 * one, 0.25), torch.full((2,), 2.0))  # type: ignore[arg-type]
