"""DUCK: centroids are fixed, forget rows go to the nearest wrong one, the run ends in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_unlearn import DUCK
from tests.helpers import save_resumable
from tests.user_module import LitNet, loaders, pairs, trainer, weights


def seeded(cls: type[LitNet] = LitNet, **options: Any) -> LitNet:
    torch.manual_seed(0)
    return cls(**options)


def features(module: LitNet, x: Tensor, layer: str | None) -> Tensor:
    return module.net[:3](x) if layer is None else module.net[:1](x)


@pytest.mark.parametrize("layer", [None, "net.0"])
def test_duck_is_the_formula(layer: str | None) -> None:
    start, plain, module, method = seeded(), seeded(), seeded(), DUCK(0.7, 1.3, 2.0, None, layer)
    trainer(method, max_epochs=2).fit(module, loaders())

    with torch.no_grad():
        x, y = (torch.cat(part) for part in zip(*loaders()["retain"], strict=True))
        centroids = torch.stack([features(start, x[y == c], layer).mean(0) for c in range(3)])
    assert method.centroids is not None
    torch.testing.assert_close(method.centroids, centroids, atol=1e-6, rtol=0)
    optimizer = plain.configure_optimizers()
    for _ in range(2):
        for (x, y), (r, label) in zip(*loaders().values(), strict=True):
            with torch.no_grad():
                similar = F.cosine_similarity(features(start, x, layer)[:, None], centroids, dim=2)
                similar[range(len(y)), y] = -2
            distance = 1 - F.cosine_similarity(features(plain, x, layer), centroids[similar.argmax(1)])
            optimizer.zero_grad()
            (0.7 * distance.mean() + 1.3 * F.cross_entropy(plain(r) / 2, label)).backward()
            optimizer.step()
    torch.testing.assert_close(weights(module), weights(plain), atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    ],
)
def test_two_epochs_and_a_resume_equal_four_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    whole, half, first = seeded(), seeded(), DUCK(target_accuracy=None)
    trainer(DUCK(target_accuracy=None), max_epochs=4, **options).fit(whole, loaders())
    run = trainer(first, max_epochs=2, **options)
    run.fit(half, loaders())
    save_resumable(run, tmp_path / "half.ckpt")
    resumed, second = LitNet(lr=123.0), DUCK(target_accuracy=None)
    trainer(second, max_epochs=4, **options).fit(
        resumed, loaders(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert torch.equal(weights(resumed), weights(whole))
    assert first.centroids is not None
    assert second.centroids is not None
    assert torch.equal(second.centroids, first.centroids)


def test_two_accumulated_batches_are_one_batch_of_both() -> None:
    whole, parts = seeded(), seeded()
    big = {"forget": pairs(16, 1, batch_size=8), "retain": pairs(16, 2, batch_size=8)}
    trainer(DUCK(target_accuracy=None), max_epochs=2).fit(whole, big)
    trainer(DUCK(target_accuracy=None), max_epochs=2, accumulate_grad_batches=2).fit(parts, loaders())
    torch.testing.assert_close(weights(parts), weights(whole), atol=2e-6, rtol=0)


def class_2() -> dict[str, DataLoader]:
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(96) % 3
    x = torch.randn(96, 8, generator=generator) + 4 * F.one_hot(y, 8)
    parts = {"forget": y == 2, "retain": y != 2}
    return {k: DataLoader(TensorDataset(x[m], y[m]), batch_size=8) for k, m in parts.items()}


def accuracy(module: LitNet, loader: DataLoader) -> float:
    x, y = loader.dataset.tensors  # type: ignore[attr-defined]
    module.eval()
    return (module(x).argmax(1) == y).float().mean().item()


def test_the_run_ends_as_soon_as_a_class_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    module = seeded()
    parts = [loader.dataset.tensors for loader in class_2().values()]  # type: ignore[attr-defined]
    everything = TensorDataset(*map(torch.cat, zip(*parts, strict=True)))
    trainer(max_epochs=8).fit(module, DataLoader(everything, batch_size=16, shuffle=True))
    assert accuracy(module, class_2()["forget"]) > 0.95

    run = trainer(DUCK(target_accuracy=0.05), max_epochs=50)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run.fit(module, class_2())
    assert "below target_accuracy=0.05." in caplog.text
    assert 1 <= run.current_epoch < 50
    assert accuracy(module, class_2()["forget"]) < 0.05
    assert float(run.callback_metrics["unlearn/forget_accuracy"]) == pytest.approx(
        accuracy(module, class_2()["forget"])
    )
    assert accuracy(module, class_2()["retain"]) > 0.95


def test_reading_the_rows_draws_nothing_and_moves_no_statistics() -> None:
    class Norm(LitNet):
        def __init__(self, lr: float = 0.05) -> None:
            super().__init__(lr)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    module = seeded(Norm)
    method = DUCK(target_accuracy=1.0, bn_mode="frozen")
    trainer(method, max_epochs=1).fit(module, class_2())
    assert int(module.net[1].num_batches_tracked) == 0
    assert not module.net[-1]._forward_hooks
    assert method.classes.tolist() == [0, 1]


def test_retain_rows_of_one_class_leave_its_forget_rows_nowhere_to_go() -> None:
    module = seeded()
    before = weights(module)
    rows = DataLoader(TensorDataset(torch.randn(8, 8), torch.zeros(8, dtype=torch.int64)), batch_size=4)
    with pytest.raises(ValueError, match=r"centroids of the classes \[0\] only"):
        trainer(DUCK()).fit(module, {"forget": rows, "retain": rows})
    assert torch.equal(weights(module), before)


class Stream(IterableDataset):
    def __init__(self) -> None:
        self.rows = iter(pairs(8, 1).dataset)  # type: ignore[call-overload]

    def __iter__(self) -> Any:
        return self.rows


@pytest.mark.parametrize("role", ["forget", "retain"])
def test_rows_that_come_only_once_are_an_error(role: str) -> None:
    data = loaders() | {role: DataLoader(Stream(), batch_size=4)}
    with pytest.raises(MisconfigurationException, match=f"The {role} rows .* gave other rows"):
        trainer(DUCK()).fit(seeded(), data)


def test_a_layer_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="'fc' has to name one module"):
        trainer(DUCK(layer="fc")).fit(seeded(), loaders())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda1": -1.0}, "lambda1 must be at least 0"),
        ({"lambda2": float("nan")}, "lambda2 must be at least 0"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"target_accuracy": 0.0}, r"target_accuracy must be greater than 0"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DUCK(**options)
