"""ForgetKL: ascent that a divergence from the original model bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_unlearn import ForgetKL, classifier_nll
from tests.helpers import trainer, weights
from tests.user_module import loaders, pairs, seeded


def test_forget_kl_is_its_formula() -> None:
    x, y = next(iter(pairs(4, seed=1)))
    module, plain, start = seeded(), seeded(), seeded()
    method = ForgetKL(kl_weight=0.5, forget_weight=2.0, retain_weight=0.0, score=classifier_nll)
    trainer(method, max_epochs=3).fit(module, {"forget": pairs(4, seed=1)})
    optimizer = plain.configure_optimizers()
    reference = start(x).detach().log_softmax(-1)
    for _ in range(3):
        log_p = plain(x).log_softmax(-1)
        divergence = (reference.exp() * (reference - log_p)).sum(-1).mean()
        optimizer.zero_grad()
        (2 * (-nn.functional.nll_loss(log_p, y) + 0.5 * divergence)).backward()
        optimizer.step()
    torch.testing.assert_close(weights(module), weights(plain), atol=1e-6, rtol=0)


def test_forget_kl_stops_at_max_forget_nll() -> None:
    run = trainer(ForgetKL(max_forget_nll=3.0, score=classifier_nll), max_epochs=1000)
    run.fit(seeded(lr=0.5), loaders())
    assert run.current_epoch < 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForgetKL(kl_weight=-1.0), "kl_weight must be at least 0, but got -1.0"),
        (lambda: ForgetKL(score=len), "reads the logits of each token"),
    ],
)
def test_the_constructor_names_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
