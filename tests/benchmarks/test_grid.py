"""Runs of a grid: each in a fresh process, never repeated without a reason, and always repeated with one."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.benchmarks import grid as module
from lightning_unlearn.benchmarks.grid import Cell, Grid, select, separate_seeds
from lightning_unlearn.core.code import import_paths, sources


@dataclass(frozen=True, kw_only=True)
class Square(Cell):
    x: int
    log: str
    fatal: int | None = None
    seconds: float = 0.0
    callbacks: tuple[dict[str, Any], ...] = ()


def square(cell: Square, folder: Path) -> dict[str, Any]:
    """Writes down that it ran, and dies where it is told to."""
    with Path(cell.log).open("a") as log:
        log.write(f"{cell.x}\n")
    if cell.x == cell.fatal and not Path(cell.log).with_name("mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(cell.seconds)
    return {"y": cell.x**2, "process": os.getpid(), "folder": str(folder)}


def cells(log: Path, *numbers: int, **fields: Any) -> dict[int, Square]:
    return {x: Square(seed=0, x=x, log=str(log), **fields) for x in numbers}


def results(grid: Grid, cells: dict[int, Square]) -> list[int]:
    return [result["y"] for result in grid.run(square, cells, "squares").values()]


class Executor310(concurrent.futures.ProcessPoolExecutor):
    """Has the arguments that Python 3.10 knows."""

    def __init__(self, max_workers: Any = None, mp_context: Any = None, initializer: Any = None, initargs: Any = ()):
        super().__init__(max_workers, mp_context, initializer, initargs)


def test_runs_have_fresh_processes_which_short_ones_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Executor310)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Executor310, raising=False)
    some = cells(tmp_path / "log", 3, 1, 2, 5)
    found = Grid(tmp_path, workers=2).run(square, some, "squares", together=2)
    assert {x: result["y"] for x, result in found.items()} == {3: 9, 1: 1, 2: 4, 5: 25}
    processes = [result["process"] for result in found.values()]
    assert processes[0] == processes[1] != processes[2] == processes[3]
    assert len({*processes, os.getpid()}) == 3
    assert {result["folder"] for result in found.values()} == {str(tmp_path)}


def test_a_grid_whose_run_dies_resumes_where_it_was(tmp_path: Path) -> None:
    log, some = tmp_path / "log", cells(tmp_path / "log", 1, 2, 3, fatal=2)
    with pytest.raises(RuntimeError, match=r"terminated abruptly with exit code -9.*x=2"):
        results(Grid(tmp_path), some)
    assert log.read_text().split() == ["1", "2"]

    (tmp_path / "mended").touch()
    log.unlink()
    grid = Grid(tmp_path, workers=0)
    assert results(grid, some) == [1, 4, 9]
    assert log.read_text().split() == ["2", "3"]
    assert results(grid, {**some, **cells(log, 5)}) == [1, 4, 9, 25]
    assert log.read_text().split() == ["2", "3", "5"]
    process = grid.run(square, cells(log, 5), "squares")[5]["process"]
    assert process == os.getpid()  # without workers


SCRIPT = """
import sys
from pathlib import Path
from tests.benchmarks.test_grid import Grid, cells, square

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    some = {**cells(folder / "log", 1), **cells(folder / "log", 2, 3, seconds=600.0)}
    Grid(folder).run(square, some, "squares")
"""


@pytest.mark.slow
def test_a_grid_that_is_killed_itself_resumes_where_it_was(tmp_path: Path) -> None:
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    while not log.exists() or "2" not in log.read_text().split():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # as Ctrl-C in a terminal does
    assert process.wait(300) != 0
    assert log.read_text().split() == ["1", "2"]
    assert len(list((tmp_path / "runs").iterdir())) == 1

    some = {**cells(log, 1), **cells(log, 2, 3, seconds=600.0)}
    assert [cell.key for cell in some.values() if (tmp_path / "runs" / f"{cell.key}.json").exists()] == [some[1].key]


def test_an_error_of_a_run_is_shown_and_stops_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 1 .*log='/dev/null/log'"):
        results(Grid(tmp_path), cells(Path("/dev/null/log"), 1))
    assert "NotADirectoryError" in capfd.readouterr().err


def test_a_cell_is_known_by_all_it_says_and_equal_ones_run_once(tmp_path: Path) -> None:
    cell = Square(seed=0, x=2, log=str(tmp_path / "log"), callbacks=({"class_path": "a", "init_args": {"b": 1}},))

    @dataclass(frozen=True, kw_only=True)
    class Other(Square):
        pass

    others = [replace(cell, seed=1), replace(cell, threads=2), replace(cell, callbacks=()), Other(**vars(cell))]
    assert len({c.key for c in (cell, *others)}) == 5
    reordered = replace(cell, callbacks=({"init_args": {"b": 1}, "class_path": "a"},))
    assert reordered.key == cell.key

    equal = {"a": replace(cell, callbacks=()), "b": replace(cell, callbacks=())}
    assert [r["y"] for r in Grid(tmp_path, workers=0).run(square, equal, "squares").values()] == [4, 4]
    assert (tmp_path / "log").read_text().split() == ["2"]
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json"))
    assert record["cell"]["x"] == 2
    assert record["result"]["y"] == 4
    assert record["sources"].keys() >= {"tests.benchmarks.test_grid", "lightning_unlearn.benchmarks.grid"}


def with_file(cell: Cell, folder: Path) -> dict[str, Any]:
    (folder / f"{cell.seed}.pt").write_text("weights")
    return {"files": [f"{cell.seed}.pt"]}


def test_a_run_whose_files_are_gone_is_repeated(tmp_path: Path) -> None:
    grid, some = Grid(tmp_path, workers=0), {0: Cell(seed=0), 1: Cell(seed=1)}
    grid.run(with_file, some, "files")
    (tmp_path / "1.pt").unlink()
    (tmp_path / "0.pt").write_text("kept")
    grid.run(with_file, some, "files")
    assert [(tmp_path / f"{i}.pt").read_text() for i in (0, 1)] == ["kept", "weights"]


# ---- source files ---------------------------------------------------------------------------------------------------

FILES = {
    "__init__.py": "",
    "formulas.py": "def loss(x):\n    return x\n",
    "base.py": "class Base:\n    pass\n",
    "one.py": (
        "from .base import Base\n\n\nclass One(Base):\n"
        "    def step(self):\n        from bench_pkg.formulas import loss\n"
    ),
    "two.py": "from bench_pkg.base import Base\n\n\nclass Two(Base):\n    pass\n",
    "bench.py": (
        "from typing import TYPE_CHECKING\n\nimport bench_pkg.whole as whole\nfrom bench_pkg.plots import draw\n"
        "from bench_pkg.rows import METHODS, rows\n\n"
        "if TYPE_CHECKING:\n    from bench_pkg.unused import Unused\n\nSIZE = 3\n\n\n"
        "def run(cell, folder):\n    return {'x': rows(SIZE) + whole.ONE}\n\n\ndef table():\n    draw(METHODS)\n"
    ),
    "rows.py": "METHODS = [1]\n\n\ndef rows(size):\n    return size\n",
    "whole.py": "ONE = 1\n",
    "plots.py": "def draw():\n    pass\n",
    "unused.py": "class Unused:\n    pass\n",
}
ONE, TWO = ({"class_path": f"bench_pkg.{name.lower()}.{name}"} for name in ("One", "Two"))


@dataclass(frozen=True, kw_only=True)
class Named(Cell):
    callbacks: tuple[dict[str, Any], ...] = ()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a benchmark and two methods."""
    folder = tmp_path / "bench_pkg"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "bench_pkg"]:
        del sys.modules[name]


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_the_sources_of_a_run_are_what_it_imports_and_no_more(package: Path) -> None:
    run = import_module("bench_pkg.bench").run
    own = {"bench_pkg.bench", "bench_pkg.rows", "bench_pkg.whole"}
    assert sources(run, []).keys() == own
    found = sources(run, ["bench_pkg.one.One"]).keys()
    assert found == own | {"bench_pkg.one", "bench_pkg.base", "bench_pkg.formulas"}

    before = sources(run, [])
    change(package / "bench.py", "def table():\n", "def table():\n    print()\n")
    change(
        package / "bench.py",
        "def run(cell, folder):\n",
        'def run(cell, folder):\n    """A docstring."""  # a comment\n',
    )
    change(package / "rows.py", "METHODS = [1]", "METHODS = [1, 2]")
    assert sources(run, []) == before
    change(package / "whole.py", "ONE = 1", "ONE = 2")
    assert [name for name, code in sources(run, []).items() if before[name] != code] == ["bench_pkg.whole"]
    change(package / "bench.py", "SIZE = 3", "SIZE = 4")
    assert [name for name, code in sources(run, []).items() if before[name] != code] == [
        "bench_pkg.bench",
        "bench_pkg.whole",
    ]


def test_a_method_of_a_user_has_its_bases_and_one_of_another_package_only_itself() -> None:
    found = sources(square, ["tests.benchmarks.test_facts.Diverging"]).keys()
    assert found >= {"tests.benchmarks.test_facts", "lightning_unlearn.objectives.grad_diff"}
    assert sources(square, ["torch.optim.SGD"]).keys() - sources(square, []).keys() == {"torch.optim.sgd"}


def test_paths_are_found_at_any_depth() -> None:
    score = "lightning_unlearn.classifier_nll"
    cell = {"a": [{"class_path": "x.Y", "init_args": {"score": score, "layer": "model.layers.7"}}], "b": {"c": 1}}
    assert list(import_paths(cell)) == ["x.Y", score]


def test_methods_of_this_package_have_their_own_sources() -> None:
    npo, simnpo = (sources(square, [f"lightning_unlearn.{name}"]).keys() for name in ("NPO", "SimNPO"))
    own = {"lightning_unlearn.objectives.npo", "lightning_unlearn.functional.objectives.npo"}
    assert own <= npo
    assert not own & simnpo
    assert {"lightning_unlearn.core.callback", "lightning_unlearn.core.scores"} <= npo & simnpo
    assert not any(name.startswith(("lightning_unlearn.diffusion", "lightning_unlearn.cli")) for name in npo)


def test_a_changed_method_runs_again_and_the_others_do_not(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = import_module("bench_pkg.bench").run
    some = {name: Named(seed=0, callbacks=(callback,)) for name, callback in (("one", ONE), ("two", TWO))}
    folder = package.parent / "out"

    def repeated(**options: Any) -> tuple[set[str], str]:
        before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*.json")}
        Grid(folder, workers=0, **options).run(run, some, "methods")
        after = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*.json")}
        keys = {some[name].key: name for name in some}
        return {keys[path.stem] for path in after if before.get(path) != after[path]}, capsys.readouterr().out

    assert repeated() == ({"one", "two"}, "")
    names, text = repeated()
    assert names == set()
    assert "2 of 2 runs are finished and not repeated" in text

    change(package / "one.py", "class One(Base):", "class One(Base):\n    changed = True\n")
    names, text = repeated(keep_stale=True)
    assert names == set()
    assert "1 of 2 runs are stale and kept" in text
    names, text = repeated()
    assert names == {"one"}
    assert "1 of 2 runs are finished" in text
    assert "1 of 2 runs are stale and repeated" in text
    assert "Changed since: bench_pkg.one." in text

    change(package / "formulas.py", "return x", "return 2 * x")
    assert repeated()[0] == {"one"}
    change(package / "base.py", "    pass", "    x = 1")
    assert repeated()[0] == {"one", "two"}
    change(package / "plots.py", "    pass", "    print()")
    change(package / "rows.py", "METHODS = [1]", "METHODS = [1, 2]")
    assert repeated()[0] == set()


# ---- tuning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    x: int


@dataclass(frozen=True, kw_only=True)
class Trial(Cell):
    name: str
    x: int


def trial(cell: Trial, folder: Path) -> dict[str, Any]:
    return {"value": cell.x * (-1 if cell.name == "low" else 1) + 0.1 * cell.seed}


def test_the_best_setting_on_the_tuning_seeds_runs_on_the_others(tmp_path: Path) -> None:
    methods = {"high": [Setting(1), Setting(3), Setting(2)], "low": [Setting(1), Setting(3), Setting(2)]}

    def tune(methods: Any) -> dict[str, Any]:
        return Grid(tmp_path, workers=0).tune(
            trial,
            methods,
            lambda name, setting, seed: Trial(name=name, x=setting.x, seed=seed),
            lambda outcome: outcome["value"],
            tuning_seeds=[8, 9],
            seeds=[0, 1],
        )

    tuned = tune(methods)
    assert {name: found["setting"] for name, found in tuned.items()} == {"high": {"x": 3}, "low": {"x": 1}}
    assert [tried["score"] for tried in tuned["high"]["tuning"]] == pytest.approx([1.85, 3.85, 2.85])
    assert [run["value"] for run in tuned["high"]["runs"]] == pytest.approx([3.0, 3.1])
    ran = [json.loads(path.read_text())["cell"] for path in (tmp_path / "runs").glob("*.json")]
    assert {cell["x"] for cell in ran if cell["name"] == "high" and cell["seed"] in (0, 1)} == {3}
    assert tune({"high": [Setting(2), Setting(2)]})["high"]["setting"] == {"x": 2}
    with pytest.raises(ValueError, match=r"same number of settings.*'high': 2, 'low': 1"):
        tune({"high": methods["high"][:2], "low": methods["low"][:1]})


def test_seeds_that_are_tuned_on_are_not_reported() -> None:
    separate_seeds([100], [0, 1])
    for tuning_seeds, seeds in (([1], [0, 1]), ([], [0]), ([1], [])):
        with pytest.raises(ValueError, match="must both be given and have none in common"):
            separate_seeds(tuning_seeds, seeds)


def test_names_are_chosen_in_their_own_order_and_unknown_ones_are_named() -> None:
    known = {"a": 1, "b": 2, "c": 3}
    assert list(select("letters", ["c", "a"], known)) == ["a", "c"]
    assert select("letters", [], known) == known
    with pytest.raises(ValueError, match=r"no letters \['d', 'e'\] of the alphabet. There are \['a', 'b', 'c'\]"):
        select("letters", ["e", "a", "d"], known, " of the alphabet")
