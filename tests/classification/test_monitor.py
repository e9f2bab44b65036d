"""Monitor of classifiers: its numbers, its loggers, and runs that it does not change."""

from __future__ import annotations

import csv
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    SSD,
    ClassifierMonitor,
    FineTune,
    ForgetRetainDataModule,
    GradientAscent,
    LitClassifier,
    NegGradPlus,
    UGradSL,
    classifier_nll,
)
from lightning_unlearn.classification.metrics.accuracy import RA, TA, UA
from lightning_unlearn.classification.metrics.gap import average_gap
from lightning_unlearn.classification.metrics.mia import MIAEfficacy, attack_accuracy
from lightning_unlearn.classification.metrics.outputs import collect_outputs
from tests.language.test_monitor import plain, records
from tests.user_module import LitNet, indexed, loaders, pairs, trainer, weights

pytest.importorskip("sklearn")

NUMBERS = {"ua": 50.0, "ra": 90.0, "ta": 80.0, "mia": 40.0}
KEYS = {"ua": "forget/ua", "ra": "retain/ra", "ta": "test/ta", "mia": "forget/mia"}


class Net(LitNet):
    """Dropout is active where the module trains; its rows may be pairs or dicts."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr, dropout=0.3)
        self.calls = 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return self.net(input)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    test_step = validation_step


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def data(extra: bool = False) -> ForgetRetainDataModule:
    heldout = {"test": indexed(11, 3), **({"test_forget": indexed(5, 4)} if extra else {})}
    return ForgetRetainDataModule(indexed(10, 1), indexed(14, 2), heldout, batch_size=4)


def by_hand(module: Net, rows: ForgetRetainDataModule) -> dict[str, float]:
    outputs = collect_outputs(module, rows.val_dataloader())
    numbers: dict[str, float] = {}
    for metric, name, key in ((UA(), "forget", "ua"), (RA(), "retain", "ra"), (TA(), "test", "ta")):
        metric.update(*outputs[name])
        numbers[key] = metric.compute().item()
    mia = MIAEfficacy(["confidence"])
    for name, role in (("forget", "forget"), ("retain", "member"), ("test", "nonmember")):
        mia.update(*outputs[name], role)  # type: ignore[arg-type]
    return numbers | {"mia": mia.compute()["confidence"]}


def fitted(monitor: ClassifierMonitor, *callbacks: Any, method: Any = None, rows: Any = None, **options: Any) -> Any:
    module = net()
    run = trainer(method or NegGradPlus(p=0.7), monitor, *callbacks, **{"limit_val_batches": 0, **options})
    run.fit(module, rows or data())
    return module, run


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_metrics_before_and_after() -> None:
    monitor = ClassifierMonitor()
    module, _ = fitted(monitor, max_epochs=2)
    assert [e.step for e in monitor.history] == [0, 3, 6]
    for evaluation, measured in ((monitor.history[0], net()), (monitor.history[-1], module)):
        expected = {KEYS[name]: value for name, value in by_hand(measured, data()).items()}
        assert evaluation.metrics == pytest.approx(expected)


def test_a_set_is_read_once_whatever_is_measured() -> None:
    monitor = ClassifierMonitor(features=["confidence", "entropy", "prob"])
    module = net()
    run = trainer(NegGradPlus(), monitor, limit_val_batches=0)
    run.fit(module, data(extra=True))
    assert module.calls == 3 + 2 * (3 + 4 + 3 + 2)
    assert set(monitor.history[0].metrics) == {
        *KEYS.values(),
        "forget/mia_entropy",
        "forget/mia_prob",
        "test_forget/accuracy",
    }


def test_without_an_attack_there_are_accuracies_alone() -> None:
    monitor = ClassifierMonitor(features=[], retrained={"ua": 1.0, "ra": 2.0, "ta": 3.0})
    fitted(monitor)
    assert set(monitor.history[0].metrics) == {"forget/ua", "retain/ra", "test/ta", "average_gap"}


@pytest.mark.parametrize("kind", ["numbers", "checkpoint", "state dict"])
def test_the_gap_to_a_retrained_model(kind: str, tmp_path: Path) -> None:
    retrained, path = net(5), tmp_path / "retrained.pt"
    if kind == "checkpoint":
        run = trainer()
        run.strategy.connect(retrained)
        run.save_checkpoint(path)
    elif kind == "state dict":
        torch.save(retrained.state_dict(), path)
    goal = NUMBERS if kind == "numbers" else by_hand(retrained, data())
    monitor = ClassifierMonitor(retrained=NUMBERS if kind == "numbers" else path)
    module, _ = fitted(monitor)
    same, _ = fitted(ClassifierMonitor())
    assert torch.equal(weights(module), weights(same))
    assert monitor.reference == pytest.approx({KEYS[name]: value for name, value in goal.items()})
    for evaluation, measured in ((monitor.history[0], net()), (monitor.history[-1], module)):
        assert evaluation.metrics["average_gap"] == pytest.approx(average_gap(by_hand(measured, data()), goal))


def test_rows_of_test_time_are_preferred_to_those_of_training() -> None:
    """The validation loader's forget rows have other labels than the training loader's."""
    x, y = pairs(16, 1).dataset.tensors  # type: ignore[attr-defined]
    shown = {"forget": DataLoader(TensorDataset(x, (y + 1) % 3), batch_size=4), "test": pairs(8, 3)}
    module, monitor = net(), ClassifierMonitor()
    predicted = module.eval()(x).argmax(1)
    module.train()
    trainer(NegGradPlus(), monitor).fit(module, loaders(), shown)
    expected = 100 * (predicted != (y + 1) % 3).float().mean().item()
    assert monitor.history[0].metrics["forget/ua"] == pytest.approx(expected)
    assert set(monitor.history[0].metrics) == set(KEYS.values())


def test_validate_and_test_return_the_numbers(tmp_path: Path) -> None:
    module = net()
    torch.save(net(5).state_dict(), tmp_path / "retrained.pt")
    run = trainer(ClassifierMonitor(retrained=tmp_path / "retrained.pt"))
    expected = by_hand(module, data())
    before = weights(module)
    for results in (run.validate(module, data(), verbose=False), run.test(module, data(), verbose=False)):
        metrics = {key: value for part in results for key, value in part.items()}
        assert {name: metrics[f"eval/{key}"] for name, key in KEYS.items()} == pytest.approx(expected)
        assert metrics["eval/average_gap"] == pytest.approx(average_gap(expected, by_hand(net(5), data())))
    assert torch.equal(weights(module), before)
    assert not any(p.is_inference() for p in module.parameters())


def test_an_edit_is_measured_on_both_sides() -> None:
    monitor = ClassifierMonitor()
    fitted(monitor, method=SSD(alpha=1.01), rows=data())
    assert [e.step for e in monitor.history] == [0, 0]
    assert monitor.history[0] != monitor.history[1]


def test_others_can_stop_at_a_number() -> None:
    monitor = ClassifierMonitor()
    stop = EarlyStopping("eval/retain/ra", mode="max", stopping_threshold=0.0, check_on_train_epoch_end=True)
    _, run = fitted(monitor, stop, max_epochs=4)
    assert run.current_epoch == 1
    assert run.callback_metrics["eval/forget/ua"] == pytest.approx(monitor.history[-1].metrics["forget/ua"])


def test_a_model_that_breaks_is_announced_once() -> None:
    rows = ForgetRetainDataModule(indexed(10, 1), indexed(14, 2), {"test": indexed(11, 3)}, batch_size=4)
    module = net()
    trainer(max_epochs=40).fit(module, DataLoader([(r["input"], r["labels"]) for r in indexed(14, 2)], batch_size=7))
    with pytest.warns(UserWarning, match=r"retain rows has fallen by .* points") as caught:
        trainer(GradientAscent(score=classifier_nll), ClassifierMonitor(), max_epochs=6, limit_val_batches=0).fit(
            module, rows
        )
    assert sum("has fallen by" in str(w.message) for w in caught) == 1


# ---- what a measurement leaves alone ---------------------------------------------------------------------------------


def test_a_monitored_run_ends_with_the_weights_of_one_that_is_not() -> None:
    def run(*callbacks: Any) -> Tensor:
        module = net()
        shuffled = {name: DataLoader(x.dataset, batch_size=4, shuffle=True) for name, x in loaders().items()}
        trainer(UGradSL(), *callbacks, max_epochs=3).fit(module, shuffled, {"test": pairs(9, 3)})
        return weights(module)

    assert torch.equal(run(), run(ClassifierMonitor()))


def test_the_history_goes_on_in_a_resumed_run(tmp_path: Path) -> None:
    path, weights_file = tmp_path / "half.ckpt", tmp_path / "retrained.pt"
    torch.save(net(5).state_dict(), weights_file)
    first, second = (ClassifierMonitor(retrained=weights_file) for _ in range(2))
    _, run = fitted(first, max_epochs=2)
    run.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["callbacks"]["ClassifierMonitor"]
    assert plain(state)
    weights_file.unlink()  # its numbers are in the checkpoint
    resumed = trainer(NegGradPlus(p=0.7), second, max_epochs=4, limit_val_batches=0)
    resumed.fit(net(), data(), ckpt_path=path, weights_only=True)
    assert [e.step for e in second.history] == [0, 3, 6, 9, 12]
    assert second.history[:3] == first.history
    assert second.reference == first.reference


# ---- loggers ---------------------------------------------------------------------------------------------------------


def test_every_logger_gets_the_numbers_by_step_and_a_table(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = ClassifierMonitor(retrained=NUMBERS)
    files, board = CSVLogger(tmp_path), TensorBoardLogger(tmp_path)
    online = WandbLogger(offline=True, save_dir=tmp_path, project="test")
    fitted(monitor, max_epochs=2, logger=[files, board, online], log_every_n_steps=1)
    expected = [(e.step, pytest.approx(e.metrics["forget/ua"])) for e in monitor.history]
    assert len(expected) == 3

    with (Path(files.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        logged = [(int(row["step"]), float(v)) for row in csv.DictReader(file) if (v := row["eval/forget/ua"])]
        assert logged == expected
    with (Path(files.log_dir) / "outcome.csv").open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    assert columns == ["percent", "before", "after", "retrained"]
    *rows, (title, *_) = rows
    assert title == "attack on other rows"
    assert [row[0] for row in rows] == ["forget/ua", "retain/ra", "test/ta", "forget/mia", "average_gap"]
    ua = [monitor.history[0].metrics["forget/ua"], monitor.history[-1].metrics["forget/ua"], 50.0]
    assert rows[0] == ["forget/ua", *(f"{value:.2f}" for value in ua)]
    assert rows[-1][-1] == ""

    board.finalize("success")
    events = EventAccumulator(board.log_dir).Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/forget/ua")] == expected
    assert "eval/outcome/text_summary" in events.Tags()["tensors"]

    history: list[dict[str, Any]] = [
        {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(online)
        if record.WhichOneof("record_type") == "history"
    ]
    logged = [(row["trainer/global_step"], row["eval/forget/ua"]) for row in history if "eval/forget/ua" in row]
    assert logged == expected
    assert any("eval/outcome.path" in row for row in history)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_set_that_is_missing_is_named() -> None:
    with pytest.raises(MisconfigurationException, match=r"\['test'\] are missing"):
        trainer(NegGradPlus(), ClassifierMonitor()).fit(net(), loaders())


def test_weights_of_another_module_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(8, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"not of this module: 6 of its weights.*such as 'bias'"):
        fitted(ClassifierMonitor(retrained=tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": -1}, "every_n_epochs must be at least 0"),
        ({"retrained": {"ua": 1.0}}, r"the numbers \['ua', 'ra', 'ta', 'mia'\]"),
        ({"retrained": "nowhere.ckpt"}, "is no file"),
        ({"features": ["loss"]}, "features must be"),
        ({"attack": "forest"}, "'svc' or 'logistic'"),
        ({"max_retain_drop": -1.0}, "max_retain_drop must be at least 0"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierMonitor(**options)


def doubts(method: Any, lr: float, **options: Any) -> tuple[str, ClassifierMonitor]:
    """What the monitor says after a run on rows that a linear classifier knows, memorized or not."""
    pytest.importorskip("sklearn")
    labels = torch.arange(120) % 3

    def part(seed: int) -> TensorDataset:
        noise = 0.1 * torch.randn(120, 3, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(3 * torch.eye(3)[labels] + noise, labels)

    linear = torch.nn.Linear(3, 3)
    linear.load_state_dict({"weight": 0.3 * torch.eye(3), "bias": torch.zeros(3)})
    data = ForgetRetainDataModule(part(1), part(2), {"test": part(3)}, batch_size=40)
    monitor = ClassifierMonitor(**options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(method, monitor, max_epochs=3).fit(LitClassifier(linear, lr=lr), data)
    return " ".join(str(w.message) for w in caught), monitor


def test_numbers_that_mean_nothing_are_said_at_the_end_of_a_run() -> None:
    said, monitor = doubts(FineTune(), 1e-6)
    assert "UA did not move: 0.0 before the run and 0.0 after it" in said
    assert re.search(r"attack is at chance: it tells [\d.]+ ± [\d.]+ %", said)
    assert "RA collapsed" not in said
    (row,) = [row for row in monitor._table() if row[0] == "attack on other rows"]
    assert all(re.fullmatch(r"[\d.]+±[\d.]+", cell) for cell in row[1:])
    said, _ = doubts(NegGradPlus(p=0.0), 5.0, features=())
    assert re.search(r"RA collapsed: 100.0 before the run and [\d.]+ after it", said)
    assert "UA did not move" not in said
    assert "attack" not in said


def test_an_attack_that_tells_rows_apart_is_not_doubted() -> None:
    members, others = torch.linspace(0.8, 1, 40), torch.linspace(0, 0.2, 40)
    assert attack_accuracy(members, others) == (100.0, 0.0)
    accuracy, half = attack_accuracy(members, members.flip(0))
    assert accuracy - half <= 50
    # 20 of each side are judged: a normal interval of a share among 40.
    assert half == pytest.approx(196 * (accuracy / 100 * (1 - accuracy / 100) / 40) ** 0.5)
