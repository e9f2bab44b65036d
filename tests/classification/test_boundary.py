"""Boundary shrink and boundary expand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import BoundaryExpand, BoundaryShrink, ForgetRetainDataModule
from tests.helpers import save_resumable
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs, trainer, weights

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"},
}
METHODS: dict[str, Callable[[], Any]] = {
    "shrink": lambda: BoundaryShrink(epsilon=0.5, clip=None),
    "expand": lambda: BoundaryExpand(),
}
every_method = pytest.mark.parametrize("method", METHODS)


def seeded(cls: type[LitNet] = LitNet, **options: Any) -> LitNet:
    torch.manual_seed(0)
    return cls(**options)


def same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(weights(one), weights(other), atol=2e-6, rtol=0)


# ---- both --------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("kind", OPTIONS)
def test_two_epochs_and_a_resume_equal_four_bit_for_bit(method: str, kind: str, tmp_path: Path) -> None:
    whole, half = seeded(), seeded()
    trainer(METHODS[method](), max_epochs=4, **OPTIONS[kind]).fit(whole, loaders())
    first = trainer(METHODS[method](), max_epochs=2, **OPTIONS[kind])
    first.fit(half, loaders())
    save_resumable(first, tmp_path / "half.ckpt")
    resumed = LitNet(lr=123.0)
    trainer(METHODS[method](), max_epochs=4, **OPTIONS[kind]).fit(
        resumed, loaders(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(half), weights(whole))


@every_method
def test_two_accumulated_batches_are_one_batch_of_both(method: str) -> None:
    whole, parts = seeded(), seeded()
    trainer(METHODS[method](), max_epochs=2).fit(whole, {"forget": pairs(16, 1, batch_size=8)})
    trainer(METHODS[method](), max_epochs=2, accumulate_grad_batches=2).fit(parts, {"forget": pairs(16, 1)})
    same(parts, whole)


class NormNet(LitNet):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


@every_method
@pytest.mark.parametrize(("mode", "updates"), [("joint", 4), ("train", 4), ("frozen", 0)])
def test_retain_rows_are_needed_for_joint_statistics_only(method: str, mode: Any, updates: int) -> None:
    module, callback = NormNet(), METHODS[method]()
    callback.bn_mode = mode
    data = loaders() if mode == "joint" else {"forget": pairs(16, 1)}
    trainer(callback).fit(module, data)
    assert int(module.net[1].num_batches_tracked) == updates
    if mode == "joint":
        with pytest.raises(MisconfigurationException, match="'retain'"):
            trainer(METHODS[method]()).fit(NormNet(), {"forget": pairs(16, 1)})


@every_method
def test_sharded_weights_are_refused(method: str) -> None:
    run = trainer(METHODS[method]())
    run.strategy.__class__ = ModelParallelStrategy
    with pytest.raises(MisconfigurationException, match="needs whole weights"):
        METHODS[method]().setup(run, seeded(), "fit")


# ---- shrink ------------------------------------------------------------------------------------------------------


def across(model: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    x = x.clone().requires_grad_()
    F.cross_entropy(model(x), y).backward()
    assert x.grad is not None
    return model(x + epsilon * x.grad.sign()).argmax(1)


@pytest.mark.parametrize("epsilon", [0.5, 1e-3])
def test_shrink_is_the_formula(epsilon: float) -> None:
    module, start, plain = seeded(), seeded(), seeded()
    failures: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            failures.append(float(trainer.callback_metrics["unlearn/attack_failures"]))

    trainer(BoundaryShrink(epsilon, clip=None), Watch(), max_epochs=2).fit(module, loaders())
    optimizer, expected = plain.configure_optimizers(), []
    for _ in range(2):
        for x, y in loaders()["forget"]:
            labels = across(start, x, y, epsilon)
            expected.append((labels == y).float().mean().item())
            optimizer.zero_grad()
            F.cross_entropy(plain(x), labels).backward()
            optimizer.step()
    same(module, plain)
    assert failures == expected
    assert 0 < sum(expected) / len(expected) < 1


def test_the_attack_is_without_dropout_and_the_training_is_with_it() -> None:
    module, start = seeded(dropout=0.9), seeded(dropout=0.9)
    start.eval()
    data = {"forget": pairs(64, 1, batch_size=64)}
    (x, y), modes = next(iter(data["forget"])), []
    module.net[2].register_forward_hook(lambda layer, *_: modes.append(layer.training))
    run = trainer(BoundaryShrink(0.1, clip=None))
    run.fit(module, data)
    failures = (across(start, x, y, 0.1) == y).float().mean()
    assert run.callback_metrics["unlearn/attack_failures"] == failures
    assert modes[2:] == [False, False, True]  # the first two passes compare the loss of the module
    assert module.training


def test_normalized_pixels_give_the_model_of_plain_pixels() -> None:
    """A net that normalizes by itself, on pixels, and the same net on normalized pixels."""
    mean, std = [0.3], [0.2]

    class Inside(LitNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - mean[0]) / std[0])

    pixels, y = torch.rand(16, 8), torch.arange(16) % 3
    one, other = seeded(Inside), seeded()

    def rows(x: Tensor) -> dict[str, DataLoader]:
        return {"forget": DataLoader(TensorDataset(x, y), batch_size=4)}

    trainer(BoundaryShrink(0.3), max_epochs=3).fit(one, rows(pixels))
    trainer(BoundaryShrink(0.3, mean, std), max_epochs=3).fit(other, rows((pixels - mean[0]) / std[0]))
    torch.testing.assert_close(weights(other), weights(one), atol=1e-5, rtol=0)


def test_inputs_out_of_the_clip_are_an_error_before_a_weight_moves() -> None:
    module = seeded()
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=r"Pass the mean and std.*clip=None"):
        trainer(BoundaryShrink()).fit(module, loaders())
    assert torch.equal(weights(module), before)
    assert "training_step" not in vars(module)


def test_rows_without_one_input_are_an_error() -> None:
    class Two(DictNet):
        def forward(self, input: Tensor, extra: Tensor) -> Tensor:
            return self.net(input)

    rows = [{**row, "extra": torch.zeros(2)} for row in indexed(8, 1)]
    data = ForgetRetainDataModule(rows, indexed(8, 2))
    with pytest.raises(MisconfigurationException, match="rows have 2 of them"):
        trainer(BoundaryShrink(clip=None)).fit(seeded(Two), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be greater than 0"),
        ({"std": [0.2, 0.0]}, "std must be greater than 0"),
        ({"clip": (1.0, 0.0)}, "clip must be"),
        ({"bn_mode": "eval"}, "bn_mode must be"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoundaryShrink(**options)


# ---- expand ------------------------------------------------------------------------------------------------------


def test_expand_is_a_head_with_one_more_row_that_is_dropped() -> None:
    method, module, plain = BoundaryExpand(seed=3), seeded(), seeded()
    trainer(method, max_epochs=3).fit(module, loaders())

    fresh = BoundaryExpand(seed=3)
    run = trainer(fresh, max_steps=1)
    run.fit(LitNet(lr=1e-6), loaders())  # the row as it starts, but for a step of next to nothing
    assert fresh.row is not None
    old, wide = plain.net[-1], nn.Linear(16, 4)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([old.weight, fresh.row.weight]))
        wide.bias.copy_(torch.cat([old.bias, fresh.row.bias]))
    plain.net[-1] = wide
    optimizer = plain.configure_optimizers()
    for _ in range(3):
        for x, y in loaders()["forget"]:
            optimizer.zero_grad()
            F.cross_entropy(plain(x), torch.full_like(y, 3)).backward()
            optimizer.step()
    with torch.no_grad():
        pruned = nn.Linear(16, 3)
        pruned.weight.copy_(wide.weight[:3])
        pruned.bias.copy_(wide.bias[:3])
    plain.net[-1] = pruned
    same(module, plain)
    assert method.row is not None
    torch.testing.assert_close(method.row.weight, wide.weight[3:], atol=2e-6, rtol=0)


def test_the_new_row_starts_as_a_linear_layer_does_and_draws_nothing() -> None:
    method = BoundaryExpand()

    class State(L.Callback):
        def on_fit_start(self, *_: Any) -> None:
            self.state = torch.get_rng_state()

    class After(State):
        pass

    before, after = State(), After()
    trainer(before, method, after, max_steps=1).fit(LitNet(lr=1e-6), loaders())
    assert torch.equal(before.state, after.state)
    assert method.row is not None
    assert method.row.weight.shape == (1, 16)
    assert 0.2 < method.row.weight.abs().max() <= 0.25


def test_the_module_has_its_own_head_and_checkpoint_format_all_the_time(tmp_path: Path) -> None:
    module = seeded()

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            assert pl_module.state_dict().keys() == LitNet().state_dict().keys()
            assert pl_module(torch.zeros(2, 8)).shape == (2, 3)

    run = trainer(BoundaryExpand(), Watch(), max_epochs=2)
    run.fit(module, loaders())
    run.save_checkpoint(tmp_path / "expanded.ckpt")
    assert torch.equal(weights(LitNet.load_from_checkpoint(tmp_path / "expanded.ckpt")), weights(module))
    assert not module.net[-1]._forward_hooks
    trainer(max_epochs=1).fit(module, pairs(8, seed=3))  # and it may go on without the callback


def test_an_exception_leaves_the_module_whole() -> None:
    class Crash(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("power")

    module = seeded()
    with pytest.raises(RuntimeError, match="power"):
        trainer(BoundaryExpand(), Crash()).fit(module, loaders())
    assert module(torch.zeros(2, 8)).shape == (2, 3)
    assert not module.net[-1]._forward_hooks
    assert "training_step" not in vars(module)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_schedulers_and_named_groups_take_the_row(optimizer: Any, tmp_path: Path) -> None:
    class Scheduled(LitNet):
        def configure_optimizers(self) -> Any:
            body, head = list(self.net[0].named_parameters()), list(self.net[-1].named_parameters())
            chosen = optimizer([{"params": body, "lr": 0.01}, {"params": head, "lr": 0.1}], lr=0.05)
            return [chosen], [torch.optim.lr_scheduler.StepLR(chosen, 1, 0.5)]

    method = BoundaryExpand()
    run = trainer(method, max_epochs=3)
    run.fit(seeded(Scheduled), loaders())
    (groups,) = [o.param_groups for o in run.optimizers]
    assert method.row is not None
    assert [len(g["params"]) for g in groups] == [2, 4]
    assert all(len(g.get("param_names", g["params"])) == len(g["params"]) for g in groups)
    assert groups[1]["params"][2] is method.row.weight
    assert groups[1]["lr"] == 0.1 / 8


class TwoHeads(LitNet):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.other, self.scale = nn.Linear(8, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)


@pytest.mark.parametrize(
    ("module", "head", "message"),
    [
        (TwoHeads(), "other", "'other' has to be called once"),
        (TwoHeads(), None, "'other' has to be called once"),
        (TwoHeads(), "net.0", r"output of 'net.0', of shape \(4, 16\), is not the logits of shape \(4, 3\)"),
        (TwoHeads(scale=2.0), "net.3", "is not the logits"),
        (TwoHeads(), "net.1", "'net.1' is a ReLU"),
        (TwoHeads(), "nowhere", "fits none"),
    ],
)
def test_a_layer_that_is_not_the_head_is_an_error_before_a_weight_moves(
    module: LitNet, head: str | None, message: str
) -> None:
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=message):
        trainer(BoundaryExpand(head)).fit(module, loaders())
    assert torch.equal(weights(module), before)


def test_a_head_by_its_name_trains() -> None:
    module = TwoHeads()
    other = module.other.weight.clone()
    trainer(BoundaryExpand("net.3")).fit(module, loaders())
    assert torch.equal(module.other.weight, other)


def test_a_head_that_does_not_train_is_an_error() -> None:
    class Frozen(LitNet):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net[0].parameters(), lr=0.1)

    with pytest.raises(MisconfigurationException, match="0 groups of the optimizer"):
        trainer(BoundaryExpand()).fit(Frozen(), loaders())
