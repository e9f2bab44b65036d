"""Objectives whose forget term is a mean over tokens: WGA, SatImp, CEU, UNDIAL, PDU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_unlearn import CEU, PDU, UNDIAL, WGA, SatImp, UnlearnCallback, classifier_nll, training_step_loss
from lightning_unlearn.core.reference import SnapshotReference
from lightning_unlearn.functional.likelihood import token_nll
from lightning_unlearn.functional.objectives.ceu import ceu
from lightning_unlearn.functional.objectives.pdu import pdu
from lightning_unlearn.functional.objectives.satimp import satimp
from lightning_unlearn.functional.objectives.undial import undial
from lightning_unlearn.functional.objectives.wga import wga
from tests.helpers import Recorder, logged, same, save_resumable, trainer
from tests.user_module import LitNet, loaders, pairs, seeded

METHODS = {"WGA": WGA, "SatImp": SatImp, "CEU": CEU, "UNDIAL": UNDIAL, "PDU": PDU}


class Table(L.LightningModule):
    """Logits of their own at each position of each row, so a gradient shows where it came from."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(4, 5, 7, generator=generator))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[: len(input_ids)]


def rows(labels: list[list[int]]) -> dict[str, Tensor]:
    return {"input_ids": torch.zeros(len(labels), 5, dtype=torch.int64), "labels": torch.tensor(labels)}


FORGET = [[-100, -100, 3, 1, -100], [-100, 2, -100, -100, -100]]
RETAIN = [[-100, 4, 4, 4, 4], [-100, 4, 4, 4, 4]]
BATCH = {"forget": rows(FORGET), "retain": rows(RETAIN)}
AT = ([0, 0, 1], [1, 2, 0])  # label t + 1 is predicted at t
LABELS = torch.tensor([3, 1, 2])


def step(method: UnlearnCallback, module: Table) -> dict[str, Tensor]:
    if method.needs.reference_logits:
        method.snapshot = SnapshotReference(module)
    return method.step(module, BATCH)


@pytest.mark.parametrize(
    ("method", "places"),
    [
        (WGA(retain_weight=0.0), AT),
        (SatImp(beta1=1.0, retain_weight=0.0), AT),
        (CEU(ignore_first=0), AT),
        (CEU(), ([0], [2])),
        (CEU(retain_weight=1e-9), ([0], [2])),
        (UNDIAL(), AT),
        (PDU(initial_dual=0.0), AT),
    ],
    ids=["WGA", "SatImp", "CEU-0", "CEU-1", "CEU-joined", "UNDIAL", "PDU"],
)
def test_only_supervised_positions_of_forget_rows_are_pushed(method: Any, places: Any) -> None:
    module = Table()
    step(method, module)["loss"].backward()
    pushed = module.table.grad.abs().amax(-1) > 1e-6  # type: ignore[union-attr]
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[places] = True
    assert torch.equal(pushed, expected)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (WGA(beta=2.0), lambda z: wga(token_nll(z, LABELS), beta=2.0)),
        (SatImp(beta1=3.0, beta2=2.0), lambda z: satimp(token_nll(z, LABELS), beta1=3.0, beta2=2.0)),
        (CEU(ignore_first=0), lambda z: ceu(z, LABELS)),
        (CEU(), lambda z: ceu(z, LABELS)[1:2]),
        (UNDIAL(beta=3.0), lambda z: undial(z, z, LABELS, beta=3.0)),
        (PDU(), pdu),
    ],
    ids=["WGA", "SatImp", "CEU-0", "CEU-1", "UNDIAL", "PDU"],
)
def test_the_forget_term_is_the_mean_over_its_tokens(method: Any, values: Any) -> None:
    module = Table()
    found = step(method, module)["forget"]
    torch.testing.assert_close(found, values(module.table[AT]).mean(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_score_without_logits_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} reads the logits of each token"):
        METHODS[method](score=training_step_loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WGA(beta=-1.0), "beta must be at least 0, but got -1.0"),
        (lambda: SatImp(beta1=-1.0), "beta1 must be at least 0"),
        (lambda: SatImp(beta2=-1.0), "beta2 must be at least 0"),
        (lambda: CEU(ignore_first=-1), "ignore_first must be at least 0"),
        (lambda: UNDIAL(beta=0.0), "beta must be greater than 0"),
        (lambda: PDU(epsilon=0.0), "epsilon must be greater than 0"),
        (lambda: PDU(initial_dual=-1.0), "initial_dual must be at least 0"),
        (lambda: PDU(dual_step_size=0.0), "dual_step_size must be greater than 0"),
        (lambda: PDU(warmup_epochs=-1), "warmup_epochs must be at least 0"),
        (lambda: WGA(retain="no"), "retain must be 'nll' or 'kl'"),  # type: ignore[arg-type]
    ],
)
def test_the_constructor_names_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Counting(LitNet):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(
    ("method", "calls", "keeps"),
    [
        (WGA(score=classifier_nll), [8], False),
        (SatImp(score=classifier_nll), [8], False),
        (CEU(ignore_first=0, score=classifier_nll), [4], False),
        (UNDIAL(score=classifier_nll), [4, 4], True),
        (UNDIAL(retain_weight=1.0, retain="kl", score=classifier_nll), [4, 4, 8], True),
        (PDU(score=classifier_nll), [8], False),
    ],
    ids=["WGA", "SatImp", "CEU", "UNDIAL", "UNDIAL+KL", "PDU"],
)
def test_retain_rows_of_weight_0_are_not_run_and_no_needless_model_is_kept(
    method: Any, calls: list[int], keeps: bool
) -> None:
    module = Counting()
    trainer(method, max_steps=1).fit(module, loaders())
    assert module.calls == calls
    assert (method.snapshot is not None) == keeps
    assert not method.caches


def test_ceu_says_so_where_it_would_forget_nothing() -> None:
    with pytest.raises(ValueError, match=r"ignore_first=1 leaves no token .* at most 1 supervised tokens"):
        trainer(CEU(score=classifier_nll)).fit(LitNet(), loaders())


def test_undial_converges_to_its_target_and_kl_retain_starts_at_0() -> None:
    module, first = seeded(), seeded()
    x, y = next(iter(pairs(4, seed=1)))
    target = (first(x) - 3.0 * nn.functional.one_hot(y, 3)).softmax(-1).detach()
    retain = logged("unlearn/retain")
    method = UNDIAL(beta=3.0, retain_weight=1e-3, retain="kl", score=classifier_nll)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)  # type: ignore[method-assign]
    trainer(method, retain, max_epochs=300).fit(module, loaders(4, 4))
    assert abs(retain.values[0]) < 1e-6
    assert retain.values[-1] > 0
    torch.testing.assert_close(module(x).softmax(-1), target, atol=0.02, rtol=0)


# ---- PDU: the dual variable ------------------------------------------------------------------------------------


def primal_dual(**options: Any) -> PDU:
    settings = {"epsilon": 0.5, "initial_dual": 2.0, "dual_step_size": 0.5, "warmup_epochs": 0}
    return PDU(**{**settings, "score": classifier_nll, **options})


def duals(method: PDU) -> Recorder:
    """The dual variable after each batch."""
    return Recorder(on_train_batch_end=lambda *_: method.dual)


def frozen() -> LitNet:
    return seeded(lr=0.0)


def retain_nll() -> list[float]:
    """Retain NLL of each of the four batches, under the frozen net."""
    with torch.no_grad():
        return [nn.functional.cross_entropy(frozen()(x), y).item() for x, y in pairs(16, seed=2)]


@pytest.mark.parametrize(
    ("accumulate", "windows"),
    [(1, [[0], [1], [2], [3]]), (2, [[0, 1], [2, 3]]), (3, [[0, 1, 2], [3]]), (4, [[0, 1, 2, 3]])],
)
def test_the_dual_variable_moves_once_an_optimizer_step(accumulate: int, windows: list[list[int]]) -> None:
    nll, dual, expected = retain_nll(), 2.0, []
    for window in windows:
        expected += [dual] * (len(window) - 1)
        dual += 0.5 * (sum(nll[i] for i in window) / len(window) - 0.5)
        expected.append(dual)
    found = duals(method := primal_dual())
    trainer(method, found, accumulate_grad_batches=accumulate).fit(frozen(), loaders())
    assert found.values == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_the_lagrangian_with_the_dual_of_before_the_step() -> None:
    run = trainer(primal_dual(), max_steps=1)
    run.fit(frozen(), loaders())
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    assert metrics["unlearn/dual"] == 2.0
    assert metrics["unlearn/retain"] == pytest.approx(retain_nll()[0], abs=1e-6)
    lagrangian = metrics["unlearn/forget"] + 2.0 * (metrics["unlearn/retain"] - 0.5)
    assert metrics["unlearn/loss"] == pytest.approx(lagrangian, abs=1e-6)


def test_the_dual_variable_rests_while_warming_up() -> None:
    found = duals(method := primal_dual(warmup_epochs=2))
    trainer(method, found, max_epochs=3).fit(frozen(), loaders())
    assert found.values[:8] == [2.0] * 8
    assert all(a < b for a, b in zip(found.values[7:], found.values[8:], strict=False))


def test_the_dual_variable_stops_at_0_and_rises_again() -> None:
    found = duals(method := primal_dual(initial_dual=0.1, epsilon=100.0))
    tighten = Recorder(on_train_epoch_end=lambda *_: setattr(method, "epsilon", 0.5))
    trainer(method, tighten, found, max_epochs=2).fit(frozen(), loaders())
    assert found.values[:4] == [0.0] * 4
    assert found.values[4] > 0


def test_the_dual_variable_goes_on_from_a_checkpoint_and_starts_anew_without(tmp_path: Path) -> None:
    whole, resumed = primal_dual(), primal_dual(initial_dual=77.0)
    trainer(whole, max_epochs=4).fit(frozen(), loaders())

    first = primal_dual()
    run = trainer(first, max_epochs=2)
    run.fit(frozen(), loaders())
    save_resumable(run, tmp_path / "half.ckpt")
    assert first.dual != whole.dual
    trainer(resumed, max_epochs=4).fit(frozen(), loaders(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert resumed.dual == whole.dual

    trainer(first, max_epochs=4).fit(frozen(), loaders())
    assert first.dual == whole.dual


def test_a_step_that_the_gradient_scaler_skips_does_not_move_the_dual_variable() -> None:
    class Overflow(LitNet):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 1:
                next(self.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]

    found = duals(method := primal_dual())
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))  # type: ignore[arg-type]
    trainer(method, found, plugins=[precision]).fit(seeded(Overflow, lr=0.0), loaders())
    a, b, c, d = found.values
    assert 2.0 < a == b < c < d


def test_the_module_stays_in_training_mode() -> None:
    modes = Recorder(on_train_batch_start=lambda _, module, *__: all(child.training for child in module.modules()))
    trainer(primal_dual(), modes, max_epochs=3).fit(LitNet(dropout=0.5), loaders())
    assert modes.values == [True] * 12


def test_what_a_net_knows_is_flattened_while_the_retain_nll_is_held(tmp_path: Path) -> None:
    class NoDecay(LitNet):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    module = seeded(NoDecay)
    rows = {role: next(iter(pairs(16, seed, 16))) for role, seed in (("forget", 1), ("retain", 2))}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        sum(nn.functional.cross_entropy(module(x), y) for x, y in rows.values()).backward()  # type: ignore[union-attr]
        optimizer.step()

    def nll(role: str) -> float:
        x, y = rows[role]
        return nn.functional.cross_entropy(module(x), y).item()

    assert nll("forget") < 0.001
    run = trainer(primal_dual(epsilon=0.3, warmup_epochs=2), max_epochs=40, gradient_clip_val=1.0)
    run.fit(module, loaders())
    assert nll("forget") > 1.0
    assert nll("retain") < 0.3
    run.save_checkpoint(tmp_path / "unlearned.ckpt")
    assert same(LitNet.load_from_checkpoint(tmp_path / "unlearned.ckpt"), module)
