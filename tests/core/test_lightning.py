"""Both names of Lightning: modules, Trainers, data modules, loggers, callbacks and command lines of either package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    NPO,
    SCRUB,
    SSD,
    ForgetRetainDataModule,
    GradDiff,
    LanguageDataModule,
    LitCausalLM,
    LitClassifier,
    RandomLabels,
    Retrain,
    UGradSL,
    UnlearnMonitor,
    classifier_nll,
)
from lightning_unlearn.core import lightning
from lightning_unlearn.core.lightning import MisconfigurationException

ROOT = Path(__file__).parents[2]
NAMES = ("lightning.pytorch", "pytorch_lightning")
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(params=NAMES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    return import_module(request.param)


def net(package: ModuleType) -> Any:
    """A module of a package."""

    class Net(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Net()


def rows(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(8, 8, generator=generator), torch.randint(0, 3, (8,), generator=generator))


def loaders() -> dict[str, DataLoader]:
    return {"forget": DataLoader(rows(1), batch_size=4), "retain": DataLoader(rows(2), batch_size=4)}


def trainer(package: ModuleType, *callbacks: Any, **options: Any) -> Any:
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return package.Trainer(callbacks=list(callbacks), **(QUIET | defaults | options))


def changed(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "method",
    [
        lambda: NPO(score=classifier_nll),
        lambda: GradDiff(score=classifier_nll),
        lambda: UGradSL(alpha=-0.2, p=0.5),
        SCRUB,
        SSD,
        Retrain,
        RandomLabels,
    ],
    ids=["NPO", "GradDiff", "UGradSL", "SCRUB", "SSD", "Retrain", "RandomLabels"],
)
def test_methods_do_the_same_with_either_package(method: Any) -> None:
    outcomes = []
    for name in NAMES:
        module = net(import_module(name))
        before = {key: value.clone() for key, value in module.state_dict().items()}
        torch.manual_seed(1)
        trainer(import_module(name), method()).fit(module, loaders())
        assert changed(module, before) or method is SSD
        outcomes.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("strategy", ["ddp", "single"])
def test_strategies_and_combined_loaders(package: ModuleType, strategy: str) -> None:
    combined = import_module(f"{package.__name__}.utilities.combined_loader").CombinedLoader(loaders(), "min_size")
    options = {"strategy": "ddp"} if strategy == "ddp" else {}
    run = trainer(package, NPO(score=classifier_nll), **options)
    run.fit(net(package), combined)
    assert run.global_step == 2


def test_own_modules_and_data_modules(package: ModuleType, tmp_path: Path) -> None:
    module = LitClassifier("torch.nn.Linear", {"in_features": 8, "out_features": 3})
    data = ForgetRetainDataModule(rows(1), rows(2), batch_size=4)
    run = trainer(package, NPO(score=classifier_nll))
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "own.ckpt")
    loaded = LitClassifier.load_from_checkpoint(tmp_path / "own.ckpt")
    assert not changed(loaded, module.state_dict())


def test_callbacks_and_loggers_of_the_package(
    package: ModuleType,
    tmp_path: Path,
    tiny_lm: Path,
    forget_rows: list[dict[str, Any]],
    retain_rows: list[dict[str, Any]],
) -> None:
    pytest.importorskip("matplotlib")
    callbacks, loggers = (import_module(f"{package.__name__}.{part}") for part in ("callbacks", "loggers"))
    tables, board = loggers.CSVLogger(tmp_path), loggers.TensorBoardLogger(tmp_path, "board")
    checkpoint = callbacks.ModelCheckpoint(tmp_path, monitor="eval/forget_nll", mode="max", save_top_k=1)
    stop = callbacks.EarlyStopping("eval/forget_nll", mode="max", stopping_threshold=0.0, check_on_train_epoch_end=True)
    run = package.Trainer(
        callbacks=[NPO(), UnlearnMonitor(), checkpoint, stop], logger=[tables, board], max_epochs=3, **QUIET
    )
    run.fit(LitCausalLM(str(tiny_lm)), LanguageDataModule(forget_rows, retain_rows, batch_size=4))
    assert run.current_epoch == 1  # stopped by the monitor's number
    assert Path(checkpoint.best_model_path).is_file()
    files = {path.name for path in Path(tables.log_dir).iterdir()}
    assert {"nll_curves.svg", "metrics.csv"} <= files
    assert any(path.name.startswith("events") for path in (tmp_path / "board").rglob("*"))


def test_the_users_command_line_with_a_file_of_ours(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("omegaconf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run"])
    data = ForgetRetainDataModule(rows(1), rows(2), batch_size=4)
    module = net(package)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    cli = import_module(f"{package.__name__}.cli").LightningCLI(
        type(module),
        run=False,
        parser_kwargs={"parser_mode": "omegaconf+"},
        args=[
            f"--config={ROOT / 'callbacks/classification/ugradsl.yaml'}",
            *(f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")),
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
        ],
    )
    cli.trainer.fit(cli.model, data)
    assert changed(cli.model, before)


def test_our_command_line_takes_the_package_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("omegaconf")
    from lightning_unlearn.cli.fit import command_line, package_for

    monkeypatch.syspath_prepend(str(tmp_path))
    for name, word in zip(NAMES, ("first", "second"), strict=True):
        (tmp_path / f"modules_{word}.py").write_text(f"import {name} as P\n\nclass Mine(P.LightningModule): ...\n")
        (tmp_path / f"{word}.yaml").write_text(f"model:\n  class_path: modules_{word}.Mine\n")
    for name, word in zip(NAMES, ("first", "second"), strict=True):
        for words in (["--model", f"modules_{word}.Mine"], ["--config", str(tmp_path / f"{word}.yaml")]):
            package = package_for(["fit", *words])
            assert package.__name__ == name
            assert issubclass(command_line(package), import_module(f"{name}.cli").LightningCLI)
    assert package_for(["fit", "--model=lightning_unlearn.LitCausalLM"]).__name__ == "lightning.pytorch"
    assert package_for(["fit", "--model=no.such.Thing"]).__name__ == "lightning.pytorch"


def test_errors_are_caught_by_the_name_of_either_package() -> None:
    for name in NAMES:
        with pytest.raises(import_module(f"{name}.utilities.exceptions").MisconfigurationException):
            raise MisconfigurationException("...")


def test_no_other_file_imports_lightning() -> None:
    package = ROOT / "lightning_unlearn"
    pattern = re.compile(r"^\s*(from|import) (lightning|pytorch_lightning|lightning_fabric)\b", re.MULTILINE)
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if pattern.search(path.read_text())}
    assert found == {"core/lightning.py", "cli/fit.py"}


def test_the_messages_of_a_package_go_on_to_its_own_logger() -> None:
    from lightning_utilities.core import rank_zero

    assert rank_zero.log.name.startswith(lightning.PACKAGES[0].__name__)


ALONE = """
import importlib.util, json, sys
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_unlearn import *
from importlib import import_module

name = sys.argv[1]
P = import_module(name)

class Net(P.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

torch.manual_seed(0)
rows = lambda: TensorDataset(torch.randn(8, 8), torch.randint(0, 3, (8,)))
data = ForgetRetainDataModule(rows(), rows(), {"test": rows()}, batch_size=4)
moved = {}
methods = [
    NPO(score=classifier_nll), GradDiff(score=classifier_nll), UGradSL(alpha=-0.2, p=0.5), SCRUB(), SSD(alpha=0.1),
    Retrain(), RandomLabels(),
]
for method in methods:
    for module in (Net(), LitClassifier("torch.nn.Linear", {"in_features": 8, "out_features": 3})):
        before = {key: value.clone() for key, value in module.state_dict().items()}
        monitors = [ClassifierMonitor(features=[]), UnlearnMonitor(score=classifier_nll)]
        run = P.Trainer(
            max_epochs=1, callbacks=[method, *monitors], logger=P.loggers.CSVLogger(sys.argv[2]), accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )
        run.fit(module, data)
        assert all(len(monitor.history) > 1 for monitor in monitors)
        moved[type(method).__name__] = any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())
others = {"lightning", "pytorch_lightning"} - {name.partition(".")[0]}
found = [other for other in others if importlib.util.find_spec(other) is not None]
print(json.dumps({"moved": moved, "others": found}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_either_package_alone_is_enough(name: str, tmp_path: Path) -> None:
    """In an environment of its own that has everything of this one except the other package."""
    venv.create(tmp_path / "venv", symlinks=True)
    executable = tmp_path / "venv/bin/python"
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    other = ("pytorch_lightning", "lightning_fabric") if name == "lightning.pytorch" else ("lightning",)
    for entry in Path(torch.__file__).parents[1].iterdir():
        if re.split(r"[-.]", entry.name)[0] not in other and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [executable, "-c", ALONE, name, tmp_path]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["others"] == []
    assert all(result["moved"].values())
    assert len(result["moved"]) == 7
