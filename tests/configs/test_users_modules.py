"""The modules of examples/classifiers.py, which know nothing of unlearning, forget from Python and from files alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch

from examples.classifiers import TabularData, TabularMLP, TextData, TextTransformer, forget
from lightning_unlearn import ClassifierMonitor
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.cli.main import main
from tests.user_module import weights

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]
QUIET = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]


class Example(NamedTuple):
    module: Any
    data: Any
    unlearning_lr: float


EXAMPLES = {
    "tabular": Example(TabularMLP, TabularData, 2.5e-3),
    "text": Example(TextTransformer, TextData, 9e-4),
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lightning-unlearn"])


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The script has run, with the trained weights in this folder."""
    folder = tmp_path_factory.mktemp("script")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples/classifiers.py"), "--output", str(folder)]
    return folder, subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_callback_forgets_a_class_from_python_and_from_files(
    name: str, script: tuple[Path, Any], tmp_path: Path
) -> None:
    kind, make, unlearning_lr = EXAMPLES[name]
    path = script[0] / f"{name}.pt"
    L.seed_everything(0, verbose=False)

    module = kind(lr=unlearning_lr, weights=str(path))
    trained = weights(module)
    monitor = forget(module, make())
    before, after = monitor.history[0].metrics, monitor.history[-1].metrics
    assert before["forget/ua"] <= 1
    assert after["forget/ua"] >= 90
    for key in ("retain/ra", "test/ta"):
        assert after[key] >= before[key] - 4

    files = [f"examples/{name}.yaml", "callbacks/classification/ugradsl.yaml", "callbacks/classification/monitor.yaml"]
    configs = [word for file in files for word in ("--config", file)]
    options = [f"--model.init_args.weights={path}", f"--trainer.default_root_dir={tmp_path}"]
    cli = UnlearnCLI(["fit", *configs, *options, *QUIET])
    assert torch.equal(weights(cli.model), weights(module))
    assert not torch.equal(weights(module), trained)
    (measured,) = [c for c in cli.trainer.callbacks if isinstance(c, ClassifierMonitor)]  # type: ignore[attr-defined]
    assert measured.history[-1].metrics == after


def test_the_script_runs(script: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = script
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["tabular", "text"]
    assert done.stderr.count("forget/ua") == 2
    assert sorted(path.name for path in folder.iterdir()) == ["tabular.pt", "text.pt"]


def test_the_command_finds_modules_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_modules.py").write_text("import lightning as L\n\nclass Mine(L.LightningModule): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as done:
        main(["fit", "--model=my_modules.Mine", "--print_config"])
    assert done.value.code == 0
    assert "class_path: my_modules.Mine" in capsys.readouterr().out
