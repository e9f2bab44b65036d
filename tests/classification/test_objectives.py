"""Objectives on classifiers: formulas, batch normalization and epochs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    SCRUB,
    SSD,
    BadTeacher,
    CFk,
    FineTune,
    ForgetRetainDataModule,
    GradientAscent,
    L1Sparse,
    LitClassifier,
    NegGradPlus,
    RandomLabels,
    SalUn,
    UGradSL,
    UGradSLPlus,
    UnlearnCallback,
    classifier_nll,
    training_step_loss,
)
from lightning_unlearn.classification import random_labels as random_labels_file
from lightning_unlearn.classification.untrained import untrained_values
from lightning_unlearn.functional.classification.adaptive_alpha import adaptive_alpha
from lightning_unlearn.functional.classification.label_smoothing import generalized_label_smoothing
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs, trainer, weights


def seeded(cls: type[LitNet] = LitNet, **options: Any) -> LitNet:
    torch.manual_seed(0)
    return cls(**options)


def fitted(method: UnlearnCallback, data: Any = None, **options: Any) -> LitNet:
    module = seeded()
    trainer(method, **{"max_epochs": 2, **options}).fit(module, data or loaders())
    return module


def by_hand(loss: Callable[[LitNet, Any, Any], Tensor], epochs: int = 2) -> LitNet:
    """The same run without Lightning: ``loss(module, forget, retain)``."""
    module = seeded()
    optimizer = module.configure_optimizers()
    for _ in range(epochs):
        for forget, retain in zip(*loaders().values(), strict=True):
            optimizer.zero_grad()
            loss(module, forget, retain).backward()
            optimizer.step()
    return module


def nll(module: LitNet, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(weights(one), weights(other), atol=2e-6, rtol=0)


# ---- UGradSL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3])
def test_ugradsl_is_the_formula(alpha: float) -> None:
    def loss(module: LitNet, forget: Any, retain: Any) -> Tensor:
        x, y = forget
        log_p = module(x).log_softmax(1)
        smoothed = (1 - alpha) * -log_p[range(len(y)), y] - alpha * log_p.mean(1)
        return 0.7 * nll(module, retain) - 0.3 * smoothed.mean()

    same(fitted(UGradSL(alpha, p=0.7)), by_hand(loss))


def test_a_sum_is_the_mean_times_the_rows() -> None:
    def loss(module: LitNet, forget: Any, retain: Any) -> Tensor:
        smoothed = generalized_label_smoothing(module(forget[0]), forget[1], -0.2).sum()
        return 0.9 * F.cross_entropy(module(retain[0]), retain[1], reduction="sum") - 0.1 * smoothed

    same(fitted(UGradSL(p=0.9, reduction="sum")), by_hand(loss))


@pytest.mark.parametrize("rule", ["isolation", "density"])
def test_adaptive_rates_are_of_the_batch_and_have_no_gradient(rule: Any) -> None:
    def loss(module: LitNet, forget: Any, retain: Any) -> Tensor:
        z_f, z_r = module(forget[0]), module(retain[0])
        alpha = adaptive_alpha(z_r, z_f, beta=0.4, distance="tv", rule=rule, scale=0.5)
        return 0.5 * F.cross_entropy(z_r, retain[1]) - 0.5 * generalized_label_smoothing(z_f, forget[1], alpha).mean()

    method = UGradSL(None, beta=0.4, distance="tv", rule=rule, alpha_scale=0.5)
    same(fitted(method), by_hand(loss))


def test_without_smoothing_it_is_neg_grad_plus() -> None:
    plus = fitted(NegGradPlus(p=0.8))
    same(plus, by_hand(lambda module, forget, retain: 0.8 * nll(module, retain) - 0.2 * nll(module, forget)))
    assert torch.equal(weights(plus), weights(fitted(UGradSLPlus(alpha=0.0, p=0.8))))


def test_p_0_is_ascent_and_p_1_is_fine_tuning() -> None:
    same(fitted(UGradSL(alpha=0.0, p=0.0)), fitted(GradientAscent(score=classifier_nll)))
    same(fitted(UGradSL(alpha=0.0, p=0.0)), by_hand(lambda module, forget, retain: -nll(module, forget)))
    same(fitted(UGradSL(p=1.0)), fitted(FineTune()))
    same(fitted(UGradSL(p=1.0)), by_hand(lambda module, forget, retain: nll(module, retain)))


def test_a_step_is_linear_in_alpha() -> None:
    minus, zero, plus = (weights(fitted(UGradSL(alpha), max_steps=1)) for alpha in (-1.0, 0.0, 1.0))
    torch.testing.assert_close((minus + plus) / 2, zero, atol=1e-6, rtol=0)
    assert not torch.allclose(minus, zero)


def test_a_sure_model_gets_a_push_that_plain_ascent_has_not() -> None:
    """At p_y = 1 ascent has no gradient; with a negative rate the margin still falls by |alpha|."""
    gradients = []
    for alpha in (0.0, -1.0):
        logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
        (-generalized_label_smoothing(logits, torch.tensor([0]), alpha)).sum().backward()
        gradients.append(logits.grad)
    assert gradients[0].abs().max() < 1e-20  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[1], torch.tensor([[2 / 3, -1 / 3, -1 / 3]]))


class Rows(L.Callback):
    """Counts batches, and rows that went through the model with gradient."""

    def __init__(self, module: LitNet) -> None:
        self.batches, self.rows = 0, 0
        module.net.register_forward_hook(self._count)

    def _count(self, _: nn.Module, args: Any, __: Any) -> None:
        self.rows += len(args[0]) if torch.is_grad_enabled() else 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1


@pytest.mark.parametrize(("method", "driver", "rows"), [(UGradSL, "forget", 20), (UGradSLPlus, "retain", 60)])
@pytest.mark.parametrize(("forget", "retain"), [(10, 30), (30, 10)])
def test_an_epoch_costs_two_rows_for_each_row_of_its_pass(
    method: Any, driver: Any, rows: int, forget: int, retain: int
) -> None:
    module = seeded(DictNet)
    count = Rows(module)
    data = ForgetRetainDataModule(indexed(forget, 1), indexed(retain, 2), batch_size=5, epoch=driver)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="An epoch of")
        trainer(method(), count).fit(module, data)
    passed = {"forget": forget, "retain": retain}[driver]
    assert (count.rows, count.batches) == (2 * passed, passed // 5)


def test_an_epoch_that_is_not_the_published_one_is_told() -> None:
    data = ForgetRetainDataModule(indexed(10, 1), indexed(30, 2), batch_size=5, epoch="retain")
    with pytest.warns(UserWarning, match=r"UGradSL is one pass over the forget rows.*epoch='forget'"):
        trainer(UGradSL()).fit(seeded(DictNet), data)
    with pytest.warns(UserWarning, match="one pass over the forget rows"):
        trainer(UGradSL()).fit(seeded(), loaders(forget=8, retain=16))


@pytest.mark.parametrize(("floor", "stops"), [(1.0, True), (0.0, False)])
def test_the_run_stops_at_the_floor_of_the_forget_accuracy(
    floor: float, stops: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(UGradSL(forget_accuracy_floor=floor, p=1.0), max_epochs=3)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run.fit(seeded(), loaders())
    assert run.current_epoch == (1 if stops else 3)
    assert ("at or below forget_accuracy_floor=1." in caplog.text) == stops


# ---- batch normalization -----------------------------------------------------------------------------------------


class NormNet(LitNet):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def blobs(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(rows) % 3
    x = torch.randn(rows, 8, generator=generator) + 4 * F.one_hot(y, 8)
    return x, y


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = NormNet(lr=0.1)
    x, y = blobs(96)
    run = trainer(max_epochs=6)
    run.fit(module, DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))
    return module.state_dict()


def class_2_forgotten(trained: dict[str, Tensor], method: UnlearnCallback, lr: float = 1e-7) -> tuple[NormNet, float]:
    """The accuracy on class 2 after three epochs, and the module."""
    module = NormNet(lr=lr)
    module.load_state_dict(trained)
    x, y = blobs(96)
    parts = {"forget": y == 2, "retain": y != 2}
    data = {k: DataLoader(TensorDataset(x[m], y[m]), batch_size=8) for k, m in parts.items()}
    trainer(method, max_epochs=3).fit(module, data)
    module.eval()
    return module, (module(x[y == 2]).argmax(1) == 2).float().mean().item()


def statistics(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state["net.1.running_mean"], state["net.1.running_var"]])


def drift(module: NormNet, trained: dict[str, Tensor]) -> float:
    """How far the running means went."""
    return (module.state_dict()["net.1.running_mean"] - trained["net.1.running_mean"]).norm().item()


def test_statistics_of_one_class_forget_it_without_a_step_and_joint_ones_do_not(trained: dict[str, Tensor]) -> None:
    ascent, forgot = class_2_forgotten(trained, GradientAscent(score=classifier_nll))
    joint, accuracy_after = class_2_forgotten(trained, UGradSL(p=0.0))
    frozen, same_as_before = class_2_forgotten(trained, UGradSL(p=0.0, bn_mode="frozen"))
    for module in (ascent, joint):  # a rate of 1e-7 moves next to nothing
        torch.testing.assert_close(weights(module), weights(frozen), atol=1e-4, rtol=0)
    assert forgot < 0.7
    assert same_as_before == 1.0
    assert accuracy_after > 0.95  # joint batches are half class 2, the training data a third
    # Half of a batch in place of a third moves the means by 1/6 of the way between the classes, all of it by 2/3.
    assert drift(joint, trained) == pytest.approx(drift(ascent, trained) / 4, rel=0.2)
    assert torch.equal(statistics(frozen.state_dict()), statistics(trained))


@pytest.mark.parametrize(("mode", "updates"), [("joint", 12), ("train", 24), ("frozen", 0)])
def test_how_often_the_statistics_move(trained: dict[str, Tensor], mode: Any, updates: int) -> None:
    module = NormNet(lr=1e-7)
    module.load_state_dict(trained)
    before = int(module.net[1].num_batches_tracked)
    trainer(UGradSL(bn_mode=mode), max_epochs=3).fit(module, loaders())
    assert int(module.net[1].num_batches_tracked) - before == updates
    assert module.net[1].training


class TrackedInstanceNorm(LitNet):
    """Instance normalization with running statistics, which evaluation uses as batch normalization does its own."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Unflatten(1, (4, 4)), norm, nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("method", "updates"),
    [
        (UGradSL(bn_mode="frozen"), 0),
        (UGradSL(bn_mode="joint"), 12),
        (UGradSL(bn_mode="train"), 24),
        (CFk(layers=r"net\.4"), 0),
    ],
)
def test_running_statistics_of_instance_normalization_are_kept_alike(method: Any, updates: int) -> None:
    module, passes = TrackedInstanceNorm(), []
    norm = module.net[2]
    norm.register_forward_pre_hook(lambda layer, _: passes.append(layer.training))
    trainer(method, max_epochs=3).fit(module, loaders())
    assert sum(passes) == updates
    assert torch.equal(norm.running_mean, torch.zeros(4)) == (updates == 0)
    assert norm.training


def test_a_frozen_norm_still_learns_its_scale(trained: dict[str, Tensor]) -> None:
    module, _ = class_2_forgotten(trained, UGradSL(bn_mode="frozen"), lr=0.01)
    assert not torch.equal(module.net[1].weight, trained["net.1.weight"])


def test_joint_statistics_need_rows_that_stack(trained: dict[str, Tensor]) -> None:
    class Ragged(NormNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[:, :8])

    x, y = blobs(8)
    wide = DataLoader(TensorDataset(F.pad(x, (0, 1)), y), batch_size=4)
    with pytest.raises(MisconfigurationException, match=r"can't be stacked.*bn_mode='frozen'"):
        trainer(UGradSL()).fit(Ragged(), {"forget": wide, "retain": pairs(8, 2)})


# ---- baselines ---------------------------------------------------------------------------------------------------


def test_l1_sparse_is_the_formula() -> None:
    module, plain = seeded(), seeded()
    trainer(L1Sparse(gamma=0.01), max_epochs=2).fit(module, {"retain": pairs(4, 2)})
    optimizer = plain.configure_optimizers()
    for gamma in (0.01, 0.005):
        optimizer.zero_grad()
        norm = sum(p.abs().sum() for p in plain.parameters())
        (nll(plain, next(iter(pairs(4, 2)))) + gamma * norm).backward()
        optimizer.step()
    same(module, plain)


def test_l1_sparse_needs_a_number_of_epochs() -> None:
    with pytest.raises(MisconfigurationException, match="max_epochs is -1"):
        trainer(L1Sparse(), max_epochs=-1, max_steps=2).fit(seeded(), loaders())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """True and drawn labels of each call."""
    calls: list[tuple[Tensor, Tensor]] = []
    original = random_labels_file.random_labels

    def recorded(labels: Tensor, *args: Any, **options: Any) -> Tensor:
        wrong = original(labels, *args, **options)
        calls.append((labels, wrong))
        return wrong

    monkeypatch.setattr(random_labels_file, "random_labels", recorded)
    return calls


class Index(L.Callback):
    def __init__(self) -> None:
        self.index: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.index.append(batch["forget"]["index"])


@pytest.mark.parametrize("resample", ["batch", "epoch", "once"])
def test_random_labels_change_when_asked(resample: Any, drawn: list[tuple[Tensor, Tensor]]) -> None:
    index = Index()
    # 12 forget rows come three times in an epoch of 36 retain rows.
    data = ForgetRetainDataModule(indexed(12, 1), indexed(36, 2), batch_size=4, epoch="retain")
    trainer(RandomLabels(resample), index, max_epochs=4).fit(seeded(DictNet), data)
    assert all((true != wrong).all() for true, wrong in drawn)
    seen: dict[tuple[int, int], set[int]] = {}
    for number, (rows, (_, wrong)) in enumerate(zip(index.index, drawn, strict=True)):
        for row, label in zip(rows.tolist(), wrong.tolist(), strict=True):
            seen.setdefault((row, number // 9 if resample != "once" else 0), set()).add(label)
    one_each = all(len(labels) == 1 for labels in seen.values())
    assert one_each == (resample != "batch")
    if resample == "epoch":
        by_row = {row: {min(seen[row, epoch]) for epoch in range(4)} for row in range(12)}
        assert any(len(labels) > 1 for labels in by_row.values())


def test_random_labels_average_over_all_rows(drawn: list[tuple[Tensor, Tensor]]) -> None:
    module = seeded()
    trainer(RandomLabels(), max_steps=1).fit(module, {"forget": pairs(2, 1), "retain": pairs(4, 2)})
    plain = seeded()
    (x, _), (r, y) = next(iter(pairs(2, 1))), next(iter(pairs(4, 2)))
    F.cross_entropy(plain(torch.cat([x, r])), torch.cat([drawn[0][1], y])).backward()
    plain.configure_optimizers().step()
    same(module, plain)


def test_random_labels_of_rows_without_an_index() -> None:
    with pytest.raises(MisconfigurationException, match=r"'index'.*resample='batch'"):
        trainer(RandomLabels("once")).fit(seeded(), loaders())


def test_random_labels_beside_the_mask_of_salun_move_half_the_weights() -> None:
    module = seeded()
    before = weights(module)
    mask = SalUn(density=0.5)
    trainer(RandomLabels(), mask, max_epochs=2).fit(module, loaders())
    live = torch.cat([mask.masks[name].flatten() for name, _ in module.named_parameters()])
    assert int(live.sum()) == len(before) // 2
    assert torch.equal(weights(module)[~live], before[~live])
    assert (weights(module)[live] != before[live]).float().mean() > 0.9


def test_scrub_alternates_whole_passes() -> None:
    method = SCRUB(max_passes=2)
    run = trainer(method, max_epochs=1)
    data = ForgetRetainDataModule(indexed(7, 1), indexed(11, 2), batch_size=4, epoch="retain")
    run.fit(seeded(DictNet), data)
    forgets = [method.forgets(batch) for batch in range(15)]
    assert forgets == [True, True, False, False, False] * 2 + [False] * 5


def test_scrub_is_the_formula() -> None:
    teacher, plain = seeded(), seeded()
    batches = {role: list(loader) for role, loader in loaders(8, 8).items()}
    optimizer = plain.configure_optimizers()

    def divergence(x: Tensor) -> Tensor:
        with torch.no_grad():
            q = (teacher(x) / 2).softmax(1)
        return 4 * (q * (q.log() - (plain(x) / 2).log_softmax(1))).sum(1).mean()

    for batch, forgets in enumerate([True, True, False, False, True, True]):
        optimizer.zero_grad()
        x, y = batches["forget" if forgets else "retain"][batch % 2]
        loss = -divergence(x) if forgets else 0.9 * F.cross_entropy(plain(x), y) + 0.3 * divergence(x)
        loss.backward()
        optimizer.step()
    same(fitted(SCRUB(alpha=0.3, gamma=0.9), loaders(8, 8), max_epochs=3), plain)


def test_scrub_starts_where_there_is_nothing_to_push() -> None:
    run = trainer(SCRUB(), max_steps=1)
    run.fit(seeded(), loaders())
    assert run.callback_metrics["unlearn/forget_divergence"].abs() < 1e-6


class Nested(LitNet):
    def __init__(self) -> None:
        super().__init__()
        attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.net = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), attention, nn.Linear(8, 3))


def test_the_bad_teacher_is_new_in_every_layer_and_the_module_is_left_alone() -> None:
    torch.manual_seed(3)
    module = Nested()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(7)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    values = untrained_values(module, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert values.keys() == before.keys()
    assert all((value != 7).all() for value in values.values())
    again = untrained_values(module, seed=1)
    assert all(torch.equal(again[name], value) for name, value in values.items())
    assert torch.equal(values["net.0.1.running_var"], torch.ones(8))


def test_bad_teacher_is_the_formula() -> None:
    good, plain, module = seeded(), seeded(), seeded()
    bad = LitNet()
    bad.load_state_dict(untrained_values(bad, seed=0))
    (x, _), (r, _) = next(iter(pairs(2, 1))), next(iter(pairs(4, 2)))
    with torch.no_grad():
        q = torch.cat([bad(x), good(r)]).softmax(1)
    (q * (q.log() - plain(torch.cat([x, r])).log_softmax(1))).sum(1).mean().backward()
    plain.configure_optimizers().step()
    trainer(BadTeacher(), max_steps=1).fit(module, {"forget": pairs(2, 1), "retain": pairs(4, 2)})
    same(module, plain)


def test_a_layer_that_cant_be_made_anew_is_named() -> None:
    class Bare(LitNet):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(MisconfigurationException, match=r"the module.*Bare.*reset_parameters"):
        trainer(BadTeacher()).fit(Bare(), loaders())


def importance(module: LitNet, inputs: Tensor, labels: Tensor, size: int) -> Tensor:
    """Mean over batches of the squared gradient of a batch's mean loss, as one vector."""
    parameters = list(module.parameters())
    squares = [
        torch.cat([g.flatten() for g in torch.autograd.grad(nll(module, batch), parameters)]) ** 2
        for batch in zip(inputs.split(size), labels.split(size), strict=True)
    ]
    return torch.stack(squares).mean(0)


def test_ssd_dampens_what_the_formula_selects_with_forget_and_retain_rows_in_one_batch() -> None:
    module, plain = seeded(), seeded()
    forget, retain = ([torch.cat(part) for part in zip(*loader, strict=True)] for loader in loaders().values())
    everything = [torch.cat(part) for part in zip(forget, retain, strict=True)]
    order = torch.randperm(len(everything[1]), generator=torch.Generator().manual_seed(7))
    size = len(next(iter(loaders()["retain"]))[1])
    of_forget = importance(plain, *forget, size)
    of_all = importance(plain, *(part[order] for part in everything), size)
    selected = of_forget > 1.5 * of_all
    expected = weights(plain)
    expected[selected] *= (0.8 * of_all / of_forget)[selected].clamp(max=1)
    run = trainer(SSD(alpha=1.5, dampening=0.8, seed=7))
    run.fit(module, loaders())
    assert run.global_step == 0
    assert 0 < selected.float().mean() < 1
    assert torch.isclose(weights(module), expected, atol=1e-6).all()
    assert torch.equal(weights(module)[~selected], weights(plain)[~selected])


def classes_of_ten(rows: int = 400) -> tuple[TensorDataset, TensorDataset]:
    """Rows of one class of ten, and of the others."""
    torch.manual_seed(0)
    y = torch.arange(rows) % 10
    x = 2 * torch.randn(10, 8)[y] + 0.5 * torch.randn(rows, 8)
    return TensorDataset(x[y == 3], y[y == 3]), TensorDataset(x[y != 3], y[y != 3])


def test_ssd_forgets_a_class_of_ten_with_its_defaults_and_says_where_nothing_was_selected() -> None:
    forget, retain = classes_of_ten()
    module = LitClassifier(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10)), lr=0.1)
    everything = DataLoader(torch.utils.data.ConcatDataset([forget, retain]), 40, shuffle=True)
    trainer(max_epochs=15).fit(module, everything)
    trained = weights(module)
    with pytest.warns(
        UserWarning, match=r"SSD changed nothing: with alpha=1e\+09 none of 618 weights .* at most [\d.]+"
    ):
        trainer(SSD(alpha=1e9)).fit(module, ForgetRetainDataModule(forget, retain, batch_size=40))
    assert torch.equal(weights(module), trained)
    trainer(SSD()).fit(module, ForgetRetainDataModule(forget, retain, batch_size=40))
    assert not torch.equal(weights(module), trained)
    known = [float((module(x).argmax(1) == y).float().mean()) for x, y in (forget.tensors, retain.tensors)]
    assert known[0] < 0.2 < 0.8 < known[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UGradSL(p=1.5), r"p must be in \[0, 1\], but got 1.5"),
        (lambda: UGradSL(alpha=float("nan")), "alpha must be a finite number"),
        (lambda: UGradSL(distance="l2"), "'cosine', 'tv' or 'euclid'"),  # type: ignore[arg-type]
        (lambda: UGradSL(rule="dense"), "'isolation' or 'density'"),  # type: ignore[arg-type]
        (lambda: UGradSL(bn_mode="eval"), "'joint', 'frozen' or 'train'"),  # type: ignore[arg-type]
        (lambda: UGradSL(reduction="none"), "'mean' or 'sum'"),  # type: ignore[arg-type]
        (lambda: UGradSL(beta=-1.0), "beta must be at least 0"),
        (lambda: UGradSL(score=training_step_loss), "only gives likelihoods"),
        (lambda: L1Sparse(gamma=0.0), "use FineTune"),
        (lambda: RandomLabels("always"), "'batch', 'epoch' or 'once'"),  # type: ignore[arg-type]
        (lambda: SCRUB(max_passes=0), "nothing would be forgotten"),
        (lambda: SCRUB(temperature=0.0), "temperature must be greater than 0"),
        (lambda: BadTeacher(temperature=0.0), "temperature must be greater than 0"),
        (lambda: SSD(alpha=0.0), "alpha must be greater than 0"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- LitClassifier -----------------------------------------------------------------------------------------------


def test_a_model_by_its_path_unlearns_and_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    torch.save(nn.Linear(8, 3).state_dict(), tmp_path / "weights.pt")
    module = LitClassifier("torch.nn.Linear", {"in_features": 8, "out_features": 3}, str(tmp_path / "weights.pt"))
    run = trainer(UGradSL(), max_epochs=2)
    run.fit(module, loaders(), {"forget": pairs(8, 1), "test": pairs(8, 3)})
    assert {"val/forget_accuracy", "val/forget_nll", "val/test_accuracy"} <= run.callback_metrics.keys()
    run.save_checkpoint(tmp_path / "run.ckpt")
    (tmp_path / "weights.pt").rename(tmp_path / "moved.pt")
    with pytest.raises(FileNotFoundError):
        LitClassifier.load_from_checkpoint(tmp_path / "run.ckpt")
    loaded = LitClassifier.load_from_checkpoint(tmp_path / "run.ckpt", weights=None)
    assert torch.equal(weights(loaded), weights(module))


def test_a_model_of_ones_own_trains() -> None:
    module = LitClassifier(nn.Linear(8, 3), lr=0.5)
    run = trainer(max_epochs=3)
    run.fit(module, pairs(8, 1))
    assert run.callback_metrics["train/nll"] < 1.0
    with pytest.raises(MisconfigurationException, match="no unlearning callback"):
        trainer().fit(module, loaders())


@pytest.mark.parametrize(("path", "message"), [("Linear", "import path"), ("torch.nn.Liner", "can't be imported")])
def test_a_path_that_leads_nowhere(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LitClassifier(path)
