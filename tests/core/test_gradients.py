"""Gradients of weights, and the checkpoints of activations that hide them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_unlearn import (
    NPO,
    SSD,
    WAGLE,
    FisherForgetting,
    GradientPenalty,
    InfluenceUnlearning,
    classifier_nll,
)
from lightning_unlearn.core.gradients import weight_gradients
from tests.helpers import same, trainer, weights
from tests.user_module import LitNet, loaders, seeded


class Plain(LitNet):
    pass


class Checkpointed(LitNet):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_(self.reentrant and torch.is_grad_enabled())
        return self.net[3](checkpoint(self.net[:3], x, use_reentrant=self.reentrant))


class Reentrant(Checkpointed):
    reentrant = True


METHODS: dict[str, Callable[[], list[Any]]] = {
    "SSD": lambda: [SSD(alpha=1.0)],
    "Influence": lambda: [InfluenceUnlearning(vectorize=False, score=classifier_nll)],
    "Fisher": lambda: [FisherForgetting(parity="released")],
    "penalty": lambda: [NPO(score=classifier_nll), GradientPenalty(0.1, mode="double_backward")],
}


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_autograd_passes_over_are_not_taken_for_unused(name: str) -> None:
    plain, checkpointed, reentrant = seeded(Plain), seeded(Checkpointed), seeded(Reentrant)
    start = weights(reentrant)
    for module in (plain, checkpointed):
        trainer(*METHODS[name]()).fit(module, loaders())
    assert torch.allclose(weights(plain), weights(checkpointed), atol=1e-6)
    with pytest.raises(MisconfigurationException, match=r"in the reentrant way.*use_reentrant=False"):
        trainer(*METHODS[name]()).fit(reentrant, loaders())
    assert torch.equal(weights(reentrant), start)


def test_whole_backward_passes_do_not_mind() -> None:
    modules = [seeded(kind) for kind in (Plain, Checkpointed, Reentrant)]
    for module in modules:
        trainer(NPO(score=classifier_nll), WAGLE(density=0.5)).fit(module, loaders())
    assert same(modules[0], modules[1])
    assert same(modules[0], modules[2])


def test_what_a_loss_does_not_depend_on_has_a_gradient_of_0() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    first, second = weight_gradients((used**2).sum(), [used, unused])
    assert first.tolist() == [2.0, 2.0]
    assert second.tolist() == [0.0, 0.0, 0.0]
