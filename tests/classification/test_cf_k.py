"""CF-k and EU-k: the last layers train, the others are the same bits afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_unlearn import CFk, EUk, LitClassifier
from lightning_unlearn.classification.untrained import untrained_values
from tests.helpers import save_resumable
from tests.user_module import LitNet, loaders, pairs, trainer


class Blocks(LitNet):
    """Four blocks, in batches of which the first and the third normalize."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr)
        first = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, affine=False), nn.ReLU())
        third = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.net = nn.Sequential(first, nn.Linear(16, 16), third, nn.Dropout(0.0), nn.Linear(16, 3))


def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def state(module: nn.Module) -> dict[str, Any]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Any]) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


LAST = {"net.4.weight", "net.4.bias"}
THIRD = {f"net.2.0.{n}" for n in ("weight", "bias")} | {
    f"net.2.1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


@pytest.mark.parametrize("method", [CFk, EUk])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ({"k": 1}, LAST),
        ({"k": 2}, LAST | THIRD),
        ({"layers": r"net\.2"}, THIRD),
        ({"layers": r"net\.4\.bias"}, {"net.4.bias"}),
    ],
)
def test_only_the_last_layers_move(method: Any, options: Any, chosen: Any, names: set[str]) -> None:
    module = blocks()
    before = state(module)
    # Its optimizer is over all parameters, with momentum and weight decay.
    trainer(method(**chosen), max_epochs=2, **options).fit(module, loaders())
    assert moved(module, before) == names
    assert all(p.requires_grad for p in module.parameters())
    assert all(child.training for child in module.modules())


def test_gradients_from_before_do_not_move_frozen_weights() -> None:
    module = blocks()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = state(module)
    trainer(CFk(1)).fit(module, loaders())
    assert moved(module, before) == LAST


def plain_run(module: Blocks) -> Blocks:
    """Two epochs of the last block by hand."""
    optimizer = torch.optim.SGD(module.net[4].parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    module.train()
    module.net[0].eval()
    module.net[2].eval()
    for _ in range(2):
        for x, y in pairs(16, 2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
    return module


def test_cf_k_is_the_formula_and_eu_k_the_same_from_new_weights() -> None:
    module, plain = blocks(), plain_run(blocks())
    trainer(CFk(1), max_epochs=2).fit(module, loaders())
    assert not moved(module, plain.state_dict())

    module, plain = blocks(), blocks()
    new = {k: v for k, v in untrained_values(plain, seed=5).items() if k in LAST}
    plain.load_state_dict(new, strict=False)
    trainer(EUk(1, seed=5), max_epochs=2).fit(module, loaders())
    assert not moved(module, plain_run(plain).state_dict())


@pytest.mark.parametrize("method", [CFk, EUk])
def test_a_resumed_run_is_the_uninterrupted_one(method: Any, tmp_path: Path) -> None:
    whole, half, resumed = blocks(), blocks(), blocks()
    trainer(method(2), max_epochs=3).fit(whole, loaders())
    run = trainer(method(2), max_epochs=1)
    run.fit(half, loaders())
    save_resumable(run, tmp_path / "half.ckpt")
    trainer(method(2), max_epochs=3).fit(resumed, loaders(), ckpt_path=tmp_path / "half.ckpt")
    assert not moved(resumed, whole.state_dict())


def test_what_was_frozen_before_stays_so() -> None:
    module = blocks()
    module.net[4].weight.requires_grad_(False)
    before = state(module)
    trainer(CFk(1)).fit(module, loaders())
    assert moved(module, before) == {"net.4.bias"}
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["net.4.weight"]


def test_blocks_are_those_of_the_model_inside() -> None:
    module = LitClassifier(blocks().net)
    before = state(module)
    trainer(CFk(1)).fit(module, loaders())
    assert moved(module, before) == {"model.4.weight", "model.4.bias"}


class Bare(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.net[4].register_module("norm", Scale())


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


def test_eu_k_needs_reset_parameters_in_its_own_layers_only() -> None:
    with pytest.raises(MisconfigurationException, match=r"net.4.norm.*pass module_init"):
        trainer(EUk(1)).fit(Bare(), loaders())
    trainer(EUk(layers=r"net\.2")).fit(Bare(), loaders())
    trainer(EUk(1, module_init=Bare)).fit(Bare(), loaders())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (CFk(4), r"k=4 blocks, but Sequential has 4: \['0', '1', '2', '4'\]"),
        (CFk(layers="fc"), "would train 0 of 10 parameters"),
        (CFk(layers="net"), "would train 10 of 10 parameters"),
    ],
)
def test_a_choice_of_all_or_nothing_is_refused(method: CFk, message: str) -> None:
    module = blocks()
    with pytest.raises(MisconfigurationException, match=message):
        trainer(method).fit(module, loaders())
    assert all(p.requires_grad for p in module.parameters())
    assert "training_step" not in module.__dict__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either k or layers"),
        ({"k": 1, "layers": "fc"}, "either k or layers"),
        ({"k": 0}, "k must be at least 1"),
        ({"layers": "("}, "not a regular expression"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EUk(**options)
