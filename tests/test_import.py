"""Dependencies: torch and Lightning for the core, an extra only where it is used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn import LitCausalLM

ROOT = Path(__file__).parents[1]
OPTIONAL = (
    "cryptography",
    "datasets",
    "diffusers",
    "gguf",
    "jinja2",
    "lm_eval",
    "matplotlib",
    "omegaconf",
    "peft",
    "pyarrow",
    "rouge_score",
    "sklearn",
    "transformers",
    "wandb",
)

# No finder finds these packages, by import or by metadata (torchmetrics goes by that); `asked` has what was looked for.
BLOCK = f"""
import importlib.metadata, sys

optional, asked = {OPTIONAL!r}, []

class Blind:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args):
        if name.partition(".")[0] not in optional:
            return self.finder.find_spec(name, *args)
        asked.append(name)

def from_name(name, found=importlib.metadata.Distribution.from_name):
    if name in optional:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

sys.meta_path[:] = map(Blind, sys.meta_path)
importlib.metadata.Distribution.from_name = from_name
"""

IMPORT = """
import sys
import lightning.pytorch
before = {name.partition(".")[0] for name in sys.modules}
asked = globals().get("asked", [])
asked.clear()
import lightning_unlearn
loaded = {name.partition(".")[0] for name in sys.modules} - before
looked_for = list(asked)
"""

# Names come to light one by one, so this is for a process in which nothing else has asked for them.
NAMES = """
before = set(sys.modules)
import lightning_unlearn.report
reporting = set(sys.modules) - before
import lightning_unlearn.functional

def unlisted(module):
    names = {}
    exec(f"from {module} import *", names)
    return sorted(set(sys.modules[module].__all__) - names.keys())

star = {"lightning_unlearn.functional": unlisted("lightning_unlearn.functional")}
lightning_unlearn.ESD()
lightning_unlearn.UCE()
constructing = {name.partition(".")[0] for name in sys.modules}
star["lightning_unlearn"] = unlisted("lightning_unlearn")
"""

TRAIN = """
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from lightning_unlearn import NPO, UnlearnMonitor, classifier_nll

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        raise AssertionError("replaced")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def fit(*callbacks, **options):
    module = Net()
    rows = [TensorDataset(torch.randn(8, 4), torch.arange(8) % 2) for _ in range(2)]
    loaders = {role: DataLoader(part, batch_size=4) for role, part in zip(("forget", "retain"), rows)}
    before = module.layer.weight.detach().clone()
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
                      callbacks=[NPO(score=classifier_nll), *callbacks], **options)
    try:
        trainer.fit(module, loaders)
        error = None
    except ImportError as caught:
        error = str(caught)
    return {"steps": trainer.global_step, "moved": not torch.equal(before, module.layer.weight), "error": error}

plain = fit(logger=False)
"""

PARTS = """
from lightning.pytorch.loggers import CSVLogger
from lightning_unlearn import LanguageDataModule, LitCausalLM, PromptFormat
from lightning_unlearn.cli.main import main
from lightning_unlearn.core.sources import load_rows
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.plots import curve_figure
from lightning_unlearn.report.html import render_html

folder = sys.argv[1]
open(f"{folder}/rows.parquet", "w").close()

def message(part):
    try:
        part()
    except (ImportError, SystemExit) as error:
        return str(error)

parts = {name: message(part) for name, part in {
    "LitCausalLM": lambda: LitCausalLM("any/model"),
    "tokenizer": lambda: LanguageDataModule([{"text": "a b"}], prompt=PromptFormat("any/model")).setup("fit"),
    "parquet": lambda: load_rows(f"{folder}/rows.parquet"),
    "hub dataset": lambda: load_rows("any/data"),
    "curves": lambda: curve_figure([Evaluation(0, {"forget_nll": 1.0})], ["forget"], "nll"),
    "report": lambda: render_html(None),
    "command": lambda: main(["fit"]),
}.items()}
monitored = fit(UnlearnMonitor(score=classifier_nll), logger=CSVLogger(folder))
"""


def python(executable: str | Path, *parts: str, returns: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Run code in a process of its own, outside the repository, and return some of its variables."""
    code = "\n".join([*parts, "import json", f"print(json.dumps([{', '.join(returns)}], default=sorted))"])
    done = subprocess.run(
        [executable, "-c", code, folder], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(returns, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happens in a process in which no optional package can be imported."""
    folder = tmp_path_factory.mktemp("blocked")
    returns = ("looked_for", "loaded", "plain", "parts", "monitored")
    return python(sys.executable, BLOCK, IMPORT, TRAIN, PARTS, returns=returns, folder=folder)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process finds that begins with the import."""
    folder = tmp_path_factory.mktemp("fresh")
    returns = ("loaded", "reporting", "star", "constructing")
    return python(sys.executable, IMPORT, NAMES, returns=returns, folder=folder)


def test_the_import_loads_no_optional_package(fresh: dict[str, Any]) -> None:
    assert "lightning_unlearn" in fresh["loaded"]
    assert set(fresh["loaded"]) & {*OPTIONAL, "PIL", "gguf", "pandas", "rich", "scipy"} == set()


def test_the_part_of_reports_is_light(fresh: dict[str, Any]) -> None:
    assert "lightning_unlearn.report" in fresh["reporting"]
    assert not {"matplotlib", "jinja2"} & set(fresh["reporting"])


def test_constructing_an_eraser_needs_no_diffusers(fresh: dict[str, Any]) -> None:
    assert "lightning_unlearn" in fresh["constructing"]
    assert "diffusers" not in fresh["constructing"]


@pytest.mark.parametrize("module", ["lightning_unlearn", "lightning_unlearn.functional"])
def test_star_imports_the_public_names(module: str, fresh: dict[str, Any]) -> None:
    assert fresh["star"][module] == []


def test_the_import_does_not_even_look_for_one(blocked: dict[str, Any]) -> None:
    assert blocked["looked_for"] == []


def test_a_plain_module_unlearns_without_them(blocked: dict[str, Any]) -> None:
    assert blocked["plain"] == {"steps": 2, "moved": True, "error": None}


def test_a_monitored_run_does_not_fail_at_its_end_for_want_of_a_package(blocked: dict[str, Any]) -> None:
    run = blocked["monitored"]
    assert run["error"] is None or run["steps"] == 0
    assert run["error"] is not None or run["steps"] == 2


@pytest.mark.parametrize(
    ("part", "extra"),
    [
        ("LitCausalLM", "llm"),
        ("tokenizer", "llm"),
        ("parquet", "llm"),
        ("hub dataset", "llm"),
        ("curves", "report"),
        ("report", "report"),
        ("command", "cli"),
    ],
)
def test_each_optional_part_names_the_extra_to_install(part: str, extra: str, blocked: dict[str, Any]) -> None:
    assert f'pip install "lightning-unlearn[{extra}]"' in blocked["parts"][part]


def test_adapters_name_the_extra_to_install(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'LoRA needs peft: pip install "lightning-unlearn\[llm\]"'):
        LitCausalLM(str(tiny_lm), lora={"r": 8})


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_the_core_dependencies_alone_are_enough(tmp_path: Path) -> None:
    """Needs some minutes and a package index; without a GPU, set PIP_EXTRA_INDEX_URL as the Makefile says."""
    venv.create(tmp_path / "venv", with_pip=True)
    executable = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [executable, "-m", "pip", "install", "-q", "--no-cache-dir", "-c", ROOT / "constraints.txt"]
    for what in ("torch", ROOT):
        done = subprocess.run([*install, what], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    missing = f"import importlib.util\nmissing = [n for n in {OPTIONAL!r} if importlib.util.find_spec(n) is None]"
    returns = ("missing", "plain", "lightning_unlearn.__file__")
    found = python(executable, IMPORT, TRAIN, missing, returns=returns, folder=tmp_path)
    assert found["plain"] == {"steps": 2, "moved": True, "error": None}
    assert Path(found["lightning_unlearn.__file__"]).is_relative_to(tmp_path)
    assert {"transformers", "peft", "datasets", "wandb", "matplotlib"} <= set(found["missing"])
    shutil.rmtree(tmp_path / "venv")  # a gigabyte
