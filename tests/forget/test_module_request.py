"""Requests about users' modules, from the command to the record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from lightning_unlearn.audit.verify import verify_record
from lightning_unlearn.cli.fit import command_line, package_for
from lightning_unlearn.cli.forget import fit, forget
from lightning_unlearn.core.lightning import Callback
from lightning_unlearn.forget.pipeline import RequestResult
from lightning_unlearn.report.findings import doctor
from tests.forget.user_code import train, write_user_code
from tests.helpers import same

COMMON = ["--key", "none", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with code and checkpoints."""
    folder = tmp_path_factory.mktemp("user")
    sys.path.insert(0, str(folder))
    user = write_user_code(folder, "user_digits")
    train(user, "LitDigits", "Digits", folder / "digits.ckpt")
    train(user, "DictDigits", "DictData", folder / "dict.ckpt", smoothing=0.1)
    train(user, "LitRegression", "Digits", folder / "regression.ckpt", epochs=8)
    other = write_user_code(folder, "user_digits_pl", "pytorch_lightning")
    train(other, "LitDigits", "Digits", folder / "pl.ckpt")
    return folder


@pytest.fixture
def user(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    return sys.modules["user_digits"]


def words(checkpoint: str, module: str, out: Path, *more: str, data: str = "user_digits:Digits") -> list[str]:
    return ["--checkpoint", checkpoint, "--module", module, "--data", data, "--output_dir", str(out), *COMMON, *more]


def test_a_class_is_forgotten_by_one_command_in_a_shell(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lightning_unlearn", "forget", "--class", "3", "--module.lr=0.02"]
    command += words("digits.ckpt", "user_digits:LitDigits", out)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "NO TRACE FOUND, NO CONTROL" in done.stdout
    assert sorted(path.name for path in (out / "model").iterdir()) == ["README.md", "unlearned.ckpt"]
    assert not [finding for finding in doctor(out) if finding.serious]
    checked: dict[str, Any] = {"models": {"after": out / "model"}, "report": out / "report.json"}
    assert [fault.kind for fault in verify_record(out / "record.jsonl", None, **checked)] == ["not checked"]  # no key
    _forgets_3(out / "model" / "unlearned.ckpt")
    with (out / "model" / "unlearned.ckpt").open("r+b") as file:
        file.seek(-2000, 2)
        byte = file.read(1)
        file.seek(-2000, 2)
        file.write(bytes([byte[0] ^ 1]))
    assert "tampered" in [fault.level for fault in verify_record(out / "record.jsonl", None, **checked)]


def _forgets_3(checkpoint: Path) -> None:
    kind: Any = sys.modules["user_digits"].LitDigits
    module = kind.load_from_checkpoint(checkpoint, weights_only=True)
    assert module.hparams == {"width": 32, "lr": 0.02, "smoothing": 0.0}
    x, y = (torch.stack(column) for column in zip(*_training_rows(), strict=True))
    right = module(x).argmax(1) == y
    assert right[y == 3].float().mean() <= 0.1
    assert right[y != 3].float().mean() > 0.9


def test_the_configuration_repeats_a_run_bit_for_bit(user: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    forget(words("dict.ckpt", "user_digits:DictDigits", out, "--class", "3", data="user_digits:DictData"))
    again = ["fit", "--config", str(out / "run.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    command_line(package_for(again))([*again, "--trainer.logger=false", "--trainer.enable_checkpointing=false"])
    first, second = (
        torch.load(path)["state_dict"] for path in (out / "model/unlearned.ckpt", tmp_path / "unlearned.ckpt")
    )
    assert same(first, second)
    assert not same(first, torch.load("dict.ckpt")["state_dict"])


class Dies(Callback):
    """Ends the run as a kill does: nothing is tidied up."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            raise _KilledError


class _KilledError(BaseException):
    pass


@pytest.mark.slow
def test_a_killed_request_goes_on_and_ends_as_one_that_was_not(
    user: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_unlearn.forget.pipeline.PAUSE", 0.0)
    more = ["--class", "3", "--max_steps", "8"]
    forget(words("digits.ckpt", "user_digits:LitDigits", tmp_path / "whole", *more))
    dies = {"trainer": {"callbacks+": [{"class_path": f"{__name__}.Dies"}]}}
    (tmp_path / "dies.yaml").write_text(yaml.safe_dump(dies))

    def dying(given: Any) -> None:
        fit([*given, "--config", str(tmp_path / "dies.yaml")])

    monkeypatch.setattr("lightning_unlearn.cli.forget.fit", dying)
    with pytest.raises(_KilledError):
        forget(words("digits.ckpt", "user_digits:LitDigits", tmp_path / "out", *more))
    assert (tmp_path / "out" / "work" / "last.ckpt").is_file()
    monkeypatch.setattr("lightning_unlearn.cli.forget.fit", fit)
    forget(words("digits.ckpt", "user_digits:LitDigits", tmp_path / "out", *more))
    states = [torch.load(tmp_path / name / "model/unlearned.ckpt")["state_dict"] for name in ("whole", "out")]
    assert same(*states)
    with pytest.raises(FileExistsError, match="another request"):
        forget(words("digits.ckpt", "user_digits:LitDigits", tmp_path / "out", "--class", "4"))


def test_the_other_package_of_lightning_and_files_of_code(user: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = str(Path("user_digits_pl.py").resolve())
    more = ["--class", "[3,5]", "--max_steps", "6"]
    result = forget(words("pl.ckpt", f"{code}:LitDigits", out, *more, data=f"{code}:Digits"))
    assert isinstance(result, RequestResult)
    kind = sys.modules["user_digits_pl"].LitDigits
    assert type(kind.load_from_checkpoint(out / "model/unlearned.ckpt", weights_only=True)) is kind
    forgotten = next(row for row in result.report.section("outcome").measurements if row.name == "rows to forget")
    assert forgotten.n == sum(int(y) in (3, 5) for _, y in _training_rows())


@pytest.mark.parametrize(
    ("module", "checkpoint"),
    [("user_digits:DrawnRegression", "regression.ckpt"), ("user_digits_pl:DrawnDigits", "pl.ckpt")],
)
def test_calls_of_another_logger_are_ignored_with_a_warning(
    user: ModuleType, tmp_path: Path, module: str, checkpoint: str
) -> None:
    out = tmp_path / "out"
    more = ["--rows", "0-40", "--max_steps", "4"]
    with pytest.warns(UserWarning, match=r"experiment.add_scalar, which is of another logger") as warned:
        forget(words(checkpoint, module, out, *more, data=f"{module.partition(':')[0]}:Digits"))
    assert sum("of another logger" in str(warning.message) for warning in warned) == 2  # once each
    assert "forget" in (out / "private" / "metrics.csv").read_text().partition("\n")[0]


def test_a_regression_is_read_by_its_own_loss(user: ModuleType, tmp_path: Path) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("\n".join(map(str, range(0, 120, 3))))
    out = tmp_path / "out"
    more = ["--rows", str(rows), "--max_steps", "4", "--retrained", "regression.ckpt"]
    result = forget(words("regression.ckpt", "user_digits:LitRegression", out, *more))
    assert isinstance(result, RequestResult)
    run = yaml.safe_load((out / "run.yaml").read_text())
    assert run["trainer"]["callbacks"][0]["class_path"] == "lightning_unlearn.GradDiff"
    assert run["trainer"]["callbacks"][0]["init_args"]["score"] == "lightning_unlearn.training_step_loss"
    assert {section.id for section in result.report.sections} >= {"outcome", "thresholds", "relearning", "own"}
    own = result.report.section("own").parts[0]
    assert [row[0] for row in own.rows] == ["val_mse"]


@pytest.mark.slow
def test_files_are_forgotten_by_their_names(user: ModuleType, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    data = user.DictData()
    data.setup("fit")
    names.write_text("\n".join(data.train.files[:5]) + "\n\n")
    out = tmp_path / "out"
    more = ["--files", str(names), "--method", "scrub", "--max_steps", "3"]
    forget(words("dict.ckpt", "user_digits:DictDigits", out, *more, data="user_digits:DictData"))
    run = yaml.safe_load((out / "run.yaml").read_text())
    assert run["data"]["init_args"]["forget"] == "0-4"
    assert run["trainer"]["callbacks"][0]["class_path"] == "lightning_unlearn.SCRUB"
    written = "".join(path.read_text() for path in (out / "record.jsonl", out / "report.json", out / "run.yaml"))
    assert data.train.files[0] not in written


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    user: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--class", "3", "--dry_run", "--data.batch_size", "32"]
    assert forget(words("digits.ckpt", "user_digits:LitDigits", tmp_path / "out", *more)) is None
    told = capsys.readouterr().out
    for text in ("class 3", "classifier_nll", "UGradSLPlus", "0.1 of 0.01", "2 x 32 rows", "the best step is kept"):
        assert text in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class", "11"], r"--class. are \[11\], but the labels of the training rows are \[0, 1"),
        (["--class", "cat"], "has no class 'cat'"),
        (["--rows", "5-2000"], "go from 5 to 2000"),
        (["--rows", "nowhere.txt"], "neither a file"),
        ([], "Give one of --rows"),
        (["--rows", "1", "--class", "2"], "Give one of --rows"),
        (["--files", "digits.ckpt.txt"], "There is no file"),
        (["--rows", "1", "--data.seed", "-1"], "anew in each run"),
        (["--rows", "1", "--data.sed", "1"], "unexpected keyword argument 'sed'"),
        (["--rows", "1", "--module.widths", "1"], "no arguments"),
        (["--rows", "1", "--module.width", "16"], "does not take the weights"),
        (["--rows", "1", "--method", "gradient_mask"], "callbacks that unlearn"),
        (["--rows", "1", "--score", "training_step_loss", "--method", "scrub"], "logits"),
        (["--rows", "1", "--score", "nowhere"], "There is no score"),
        (["--rows", "1", "--retrained", "no.ckpt"], "There is no file no.ckpt"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    user: ModuleType, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        forget(words("digits.ckpt", "user_digits:LitDigits", tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_classes_and_checkpoints_that_do_not_fit(user: ModuleType, tmp_path: Path) -> None:
    cases = [
        (("digits.ckpt", "user_digits:LitDigit"), "has no class LitDigit. It has"),
        (("digits.ckpt", "nowhere:LitDigits"), "There is no module nowhere"),
        (("digits.ckpt", "user_digits:Rows"), "no LightningModule"),
        (("digits.ckpt", "user_digits:LitRegression"), None),
        (("digits.ckpt", "user_digits:LitOther"), "does not take the weights.*Give the class that was trained"),
        (("nowhere.ckpt", "user_digits:LitDigits"), "There is no file nowhere.ckpt"),
        (("user_digits.py", "user_digits:LitDigits"), "no PyTorch file"),
        (("pl.ckpt", "user_digits_pl:LitDigits"), "two packages"),
    ]
    for (checkpoint, module), message in cases:
        if message is not None:
            with pytest.raises((ValueError, OSError), match=message):
                forget(words(checkpoint, module, tmp_path / "out", "--rows", "1"))


def _training_rows() -> Any:
    data = sys.modules["user_digits"].Digits()
    data.setup("fit")
    return data.train
