"""UNSIR: the noise is learned once, impairs, and is not part of the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import UNSIR, ForgetRetainDataModule
from tests.helpers import save_resumable
from tests.user_module import DictNet, LitNet, pairs, trainer, weights

CLASS = 2


def seeded(cls: type[LitNet] = LitNet, **options: Any) -> LitNet:
    torch.manual_seed(0)
    return cls(**options)


def rows(count: int = 48, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(count) % classes
    return torch.randn(count, 8, generator=generator) + 4 * F.one_hot(y, 8), y


def retain(batch_size: int = 4) -> dict[str, DataLoader]:
    return {"retain": DataLoader(TensorDataset(*rows(16, classes=2)), batch_size=batch_size)}


def method(**options: Any) -> UNSIR:
    return UNSIR(CLASS, **{"noise_rows": 6, "noise_steps": 5, "noise_ratio": 0.75, **options})


def learned(model: nn.Module, steps: int = 5, seed: int = 0) -> Tensor:
    noise = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -F.cross_entropy(model(noise), torch.full((6,), CLASS)) + 0.1 * noise.square().sum(1).mean()
        loss.backward()
        optimizer.step()
    return noise.detach()


def test_unsir_is_the_formula() -> None:
    module, plain, callback = seeded(), seeded(), method()
    trainer(callback, max_epochs=3).fit(module, retain())
    noise = learned(seeded())
    optimizer = plain.configure_optimizers()
    for epoch in range(3):
        for number, (x, y) in enumerate(retain()["retain"]):
            if epoch == 0:  # three rows of six for each four of the others
                half = noise[:3] if number % 2 == 0 else noise[3:]
                x, y = torch.cat([x, half]), torch.cat([y, torch.full((3,), CLASS)])
            optimizer.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            optimizer.step()
    assert callback.noise is not None
    torch.testing.assert_close(callback.noise, noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights(module), weights(plain), atol=2e-6, rtol=0)


def test_phases_are_whole_epochs() -> None:
    rows_of_each_step: list[int] = []
    module = seeded()
    module.net.register_forward_hook(
        lambda net, args, _: rows_of_each_step.append(len(args[0])) if net.training else None
    )
    trainer(method(impair_epochs=2), max_epochs=4).fit(module, retain())
    assert rows_of_each_step == [4 + 3] * 8 + [4] * 8


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    ],
)
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_ends_in_the_same_bits(epochs: int, options: dict[str, Any], tmp_path: Path) -> None:
    """Resumed in the middle of the impairment, and between it and the repair."""
    whole, half, first = seeded(), seeded(), method(impair_epochs=2)
    trainer(method(impair_epochs=2), max_epochs=4, **options).fit(whole, retain())
    run = trainer(first, max_epochs=-1, max_steps=epochs * (2 if options else 4), **options)
    run.fit(half, retain())
    save_resumable(run, tmp_path / "half.ckpt")
    resumed, second = LitNet(lr=123.0), method(impair_epochs=2)
    trainer(second, max_epochs=4, **options).fit(resumed, retain(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(half), weights(whole))
    assert first.noise is not None
    assert second.noise is not None
    assert torch.equal(second.noise, first.noise)


def test_two_accumulated_batches_are_one_batch_of_both() -> None:
    whole, parts = seeded(), seeded()
    trainer(method(), max_epochs=2).fit(whole, retain(8))
    trainer(method(), max_epochs=2, accumulate_grad_batches=2).fit(parts, retain())
    torch.testing.assert_close(weights(parts), weights(whole), atol=2e-6, rtol=0)


class Norm(LitNet):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_learning_the_noise_leaves_the_module_the_batch_and_the_generator_alone(tmp_path: Path) -> None:
    module, callback = seeded(Norm, lr=0.0), method()
    before, (x, _) = weights(module), rows(16, classes=2)
    data, state = retain(), torch.get_rng_state()
    run = trainer(callback, max_epochs=2)
    run.fit(module, data)
    assert torch.equal(weights(module), before)  # lr = 0
    assert int(module.net[1].num_batches_tracked) == 8  # noise and rows of a step are one batch
    assert torch.equal(data["retain"].dataset.tensors[0], x)  # type: ignore[attr-defined]
    assert all(p.grad is None or p.grad.shape == p.shape for p in module.parameters())
    run.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == Norm().state_dict().keys()
    torch.set_rng_state(state)
    callback._learn_noise(module, next(iter(zip(*[t.split(4) for t in rows(16, 2)], strict=True))))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_class_is_forgotten_and_the_others_are_repaired() -> None:
    module = seeded()
    x, y = rows(96)
    trainer(max_epochs=8).fit(module, DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))
    others = DataLoader(TensorDataset(x[y != CLASS], y[y != CLASS]), batch_size=8)

    def accuracy() -> tuple[float, float]:
        module.eval()
        right = module(x).argmax(1) == y
        return right[y == CLASS].float().mean().item(), right[y != CLASS].float().mean().item()

    assert accuracy() > (0.95, 0.95)
    module.train()
    trainer(UNSIR(CLASS, noise_rows=32, impair_epochs=2), max_epochs=4).fit(module, {"retain": others})
    forgotten, others = accuracy()
    assert forgotten < 0.5
    assert others > 0.95


def test_rows_that_are_dicts_and_batches_smaller_than_the_noise() -> None:
    x, y = rows(13, classes=2)
    data = ForgetRetainDataModule(
        [{"input": x[0], "labels": CLASS}],
        [{"input": a, "labels": int(b)} for a, b in zip(x, y, strict=True)],
        batch_size=1,
        retain_batch_size=4,
        epoch="retain",
    )
    module = seeded(DictNet)
    before = weights(module)
    trainer(method(noise_ratio=3.0), max_epochs=2).fit(module, data)
    assert not torch.equal(weights(module), before)


def test_a_retain_row_of_the_class_is_an_error_before_a_weight_moves() -> None:
    module = seeded()
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=r"a retain row has forget_class=2"):
        trainer(method(), max_epochs=2).fit(module, {"retain": pairs(16, 2, batch_size=16)})
    assert torch.equal(weights(module), before)


def test_a_run_without_repair_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match=r"2 epochs of impairment, but max_epochs=2"):
        trainer(method(impair_epochs=2), max_epochs=2).fit(seeded(), retain())


def test_a_class_that_the_model_has_not_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="the model has the classes 0 to 2"):
        trainer(UNSIR(3), max_epochs=2).fit(seeded(), retain())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget_class": -1}, "forget_class must be"),
        ({"noise_rows": 0}, "noise_rows must be at least 1"),
        ({"noise_steps": 0}, "noise_steps must be at least 1"),
        ({"impair_epochs": 0}, "impair_epochs must be at least 1"),
        ({"noise_lr": 0.0}, "noise_lr must be greater than 0"),
        ({"noise_ratio": 0.0}, "noise_ratio must be greater than 0"),
        ({"penalty": -0.1}, "penalty must be at least 0"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNSIR(**{"forget_class": 1, **options})
