"""Amnesiac unlearning: the ledger of a training run, and the subtraction of its steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import safe_open
from torch import Tensor

from lightning_unlearn import Amnesiac, AmnesiacLedger, FineTune
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs, trainer, weights

ROWS = [{**row, "index": 100 + i} for i, row in enumerate(indexed(12, 1))]


def data(batch_size: int = 3) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(ROWS, batch_size=batch_size)


def seeded(cls: type[LitNet] = DictNet, **options: Any) -> LitNet:
    torch.manual_seed(0)
    return cls(**options)


class Rows(DictNet):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch["input"]), batch["labels"])


class Steps(L.Callback):
    """The weights before each step, and those after the last."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.weights.append(weights(pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights.append(weights(pl_module))


def trained(folder: Path, ledger: AmnesiacLedger | None = None, **options: Any) -> tuple[LitNet, Steps]:
    module, steps = seeded(Rows), Steps()
    trainer(ledger or AmnesiacLedger(folder), steps, **{"max_epochs": 2, **options}).fit(module, data())
    return module, steps


def ledger(folder: Path) -> dict[str, tuple[str, dict[str, Tensor]]]:
    records = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            records[path.name] = (file.metadata()["row_ids"], {k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118
    return records


def test_a_record_is_what_the_step_added_and_whose_rows(tmp_path: Path) -> None:
    module, steps = trained(tmp_path)
    records = list(ledger(tmp_path).values())
    assert [ids for ids, _ in records] == [f"[{i}, {i + 1}, {i + 2}]" for i in (100, 103, 106, 109)] * 2
    for (_, moved), (before, after) in zip(records, pairwise(steps.weights), strict=True):
        assert moved.keys() == dict(module.named_parameters()).keys()
        assert torch.equal(torch.cat([moved[n].flatten() for n, _ in module.named_parameters()]), after - before)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_steps_with_a_forget_row_are_taken_back(precision: Any, tmp_path: Path) -> None:
    module, steps = trained(tmp_path, precision=precision)
    end = weights(module)
    run = trainer(Amnesiac(tmp_path, [104, 110]))
    run.fit(module, loaders())
    moved = torch.stack(steps.weights).diff(dim=0)
    torch.testing.assert_close(weights(module), end - moved[[1, 3, 5, 7]].sum(0), atol=1e-6, rtol=0)
    assert run.global_step == 0
    assert not torch.equal(weights(module), end)


def test_all_steps_taken_back_are_the_start(tmp_path: Path) -> None:
    module, steps = trained(tmp_path)
    Amnesiac(tmp_path, list(range(100, 112))).edit(module)
    torch.testing.assert_close(weights(module), steps.weights[0], atol=1e-6, rtol=0)


def test_a_request_known_beforehand_needs_only_its_own_steps(tmp_path: Path) -> None:
    one, _ = trained(tmp_path / "all")
    other, _ = trained(tmp_path / "few", AmnesiacLedger(tmp_path / "few", rows=[104]))
    assert len(ledger(tmp_path / "all")) == 8
    assert len(ledger(tmp_path / "few")) == 2
    for folder, module in (("all", one), ("few", other)):
        Amnesiac(tmp_path / folder, [104]).edit(module)
    assert torch.equal(weights(one), weights(other))


def test_the_run_is_the_run_without_a_ledger(tmp_path: Path) -> None:
    plain = seeded(Rows)
    trainer(max_epochs=2).fit(plain, data())
    assert torch.equal(weights(trained(tmp_path)[0]), weights(plain))


def test_accumulated_batches_are_one_step_of_all_their_rows(tmp_path: Path) -> None:
    trained(tmp_path, accumulate_grad_batches=3, max_epochs=1)
    assert [ids for ids, _ in ledger(tmp_path).values()] == [str(list(range(100, 109))), "[109, 110, 111]"]


def test_frozen_weights_are_not_written_and_stay(tmp_path: Path) -> None:
    module = seeded(Rows)
    module.net[0].requires_grad_(False)
    trainer(AmnesiacLedger(tmp_path)).fit(module, data())
    assert all(moved.keys() == {"net.3.weight", "net.3.bias"} for _, moved in ledger(tmp_path).values())
    Amnesiac(tmp_path, [100]).edit(module)
    assert torch.equal(module.net[0].weight, seeded(Rows).net[0].weight)


class Crash(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 7:
            raise RuntimeError("power")


def test_a_resumed_run_writes_the_ledger_of_an_uninterrupted_one(tmp_path: Path) -> None:
    trained(tmp_path / "whole", max_epochs=3)
    folder, module = tmp_path / "cut", seeded(Rows)
    first = trainer(AmnesiacLedger(folder), max_epochs=1)
    first.fit(module, data())
    first.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(RuntimeError, match="power"):
        trainer(AmnesiacLedger(folder), Crash(), max_epochs=3).fit(
            seeded(Rows), data(), ckpt_path=tmp_path / "one.ckpt"
        )
    assert len(ledger(folder)) == 7  # three steps are of no checkpoint
    resumed = seeded(Rows)
    (folder / ".000000007.safetensors.1.part").write_text("half a file")
    trainer(AmnesiacLedger(folder), max_epochs=3).fit(
        resumed, data(), ckpt_path=tmp_path / "one.ckpt", weights_only=True
    )
    whole, cut = ledger(tmp_path / "whole"), ledger(folder)
    assert whole.keys() == cut.keys()
    for name, (ids, moved) in whole.items():
        assert cut[name][0] == ids
        assert all(torch.equal(cut[name][1][k], v) for k, v in moved.items())


def test_a_ledger_with_gaps_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "ledger")
    with pytest.raises(MisconfigurationException, match="8 steps of another run"):
        trained(tmp_path / "ledger")
    run = trainer(max_epochs=1)
    run.fit(seeded(Rows), data())
    run.save_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(MisconfigurationException, match=r"none of the steps before were written.*has 4"):
        trainer(AmnesiacLedger(tmp_path / "ledger"), max_epochs=2).fit(
            seeded(Rows), data(), ckpt_path=tmp_path / "without.ckpt"
        )
    run = trainer(AmnesiacLedger(tmp_path / "one"), max_epochs=1)
    run.fit(seeded(Rows), data())
    run.save_checkpoint(tmp_path / "with.ckpt")
    with pytest.raises(MisconfigurationException, match=r"4 of the steps before were written.*has 0"):
        trainer(AmnesiacLedger(tmp_path / "two"), max_epochs=2).fit(
            seeded(Rows), data(), ckpt_path=tmp_path / "with.ckpt"
        )


class SkippingScaler:
    """A gradient scaler that skips one step, as the real one does where a gradient overflows."""

    def __init__(self, skipped: int) -> None:
        self.skipped, self.steps = skipped, 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None: ...

    def update(self) -> None: ...

    def step(self, optimizer: torch.optim.Optimizer, **_: Any) -> None:
        if self.steps != self.skipped:
            optimizer.step()
        self.steps += 1


@pytest.mark.parametrize("rows", [None, [104]])
def test_a_step_that_the_gradient_scaler_skips_is_not_written(rows: list[int] | None, tmp_path: Path) -> None:
    precision = MixedPrecision("16-mixed", "cpu", scaler=SkippingScaler(1))  # type: ignore[arg-type]
    module, steps = seeded(Rows), Steps()
    trainer(AmnesiacLedger(tmp_path, rows), steps, max_epochs=2, plugins=precision).fit(module, data())
    assert torch.equal(steps.weights[1], steps.weights[2])
    moved = torch.stack(steps.weights).diff(dim=0)
    records = ledger(tmp_path)
    written = [5] if rows else [0, 2, 3, 4, 5, 6, 7]  # rows 103 to 105 are of steps 1 and 5
    assert list(records) == [f"{step:09d}.safetensors" for step in written]
    for step, (_, values) in zip(written, records.values(), strict=True):
        assert torch.equal(torch.cat([values[n].flatten() for n, _ in module.named_parameters()]), moved[step])


def test_rows_without_an_index_need_a_function(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="pass row_ids"):
        trainer(AmnesiacLedger(tmp_path / "a")).fit(seeded(LitNet), pairs(8, 1))
    ids = AmnesiacLedger(tmp_path / "b", row_ids=lambda batch: batch[1])
    trainer(ids).fit(seeded(LitNet), pairs(8, 1))
    assert len(ledger(tmp_path / "b")) == 2


def test_what_cant_be_taken_back_is_an_error_and_no_weight_moves(tmp_path: Path) -> None:
    module, _ = trained(tmp_path / "ledger")
    before = weights(module)
    with pytest.raises(ValueError, match=r"None of the 8 steps.*rows \[5\]"):
        Amnesiac(tmp_path / "ledger", [100, 5]).edit(module)
    with pytest.raises(ValueError, match="None of the 0 steps"):
        Amnesiac(tmp_path / "nowhere", [100]).edit(module)
    wide = seeded(Rows)
    wide.net[-1] = torch.nn.Linear(16, 7)
    start = weights(wide)
    with pytest.raises(ValueError, match=r"moves 'net.3.bias' of shape \(3,\), which is \(7,\)"):
        Amnesiac(tmp_path / "ledger", [100]).edit(wide)
    assert torch.equal(weights(module), before)
    assert torch.equal(weights(wide), start)


def test_bad_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="forget_ids is empty"):
        Amnesiac(tmp_path, [])
    with pytest.raises(ValueError, match="rows is empty"):
        AmnesiacLedger(tmp_path, rows=[])


def test_fine_tuning_mends_what_was_taken_back(tmp_path: Path) -> None:
    module, _ = trained(tmp_path, max_epochs=20)

    def loss() -> float:
        x, y = (torch.stack([torch.as_tensor(row[k]) for row in ROWS[3:]]) for k in ("input", "labels"))
        return float(torch.nn.functional.cross_entropy(module(input=x), y))

    Amnesiac(tmp_path, [100]).edit(module)
    broken = loss()
    retained = torch.utils.data.DataLoader(ROWS[3:], batch_size=3)
    trainer(FineTune(), max_epochs=5).fit(module, {"retain": retained})
    assert loss() < broken
