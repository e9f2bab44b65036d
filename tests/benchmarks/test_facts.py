"""The comparison of objectives, on the tiny model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

import lightning_unlearn
from lightning_unlearn import Sophia
from lightning_unlearn.benchmarks import facts as module
from lightning_unlearn.benchmarks.entries import FACTS, WEIGHTS, Entry, Setting
from lightning_unlearn.benchmarks.facts import FactsCell, ModelCell, bench_facts
from lightning_unlearn.benchmarks.runs import build

NAN = {"class_path": "tests.benchmarks.test_facts.Diverging"}
CELL: Any = {"model": "start", "data_sha256": "", "precision": "32-true"}


class Diverging(lightning_unlearn.GradDiff):
    """Not finite from the first step on."""

    def forget_loss(self, *args: Any) -> Any:
        return super().forget_loss(*args) * float("nan")


class Drawn(lightning_unlearn.RandomMask):
    """Notes which seeds it draws with."""

    seeds: ClassVar[list[int]] = []

    def scores(self, *args: Any) -> Any:
        self.seeds.append(self.seed)
        return super().scores(*args)


class Counted(Sophia):
    """Notes the learning rate of each step."""

    rates: ClassVar[list[float]] = []

    def step(self, closure: Any = None) -> Any:
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def result(forget: float, kept: float) -> dict[str, Any]:
    return {"metrics": {"forget_accuracy": forget} | {f"{n}_accuracy": kept for n in module.SETS[1:]}}


def test_every_objective_has_an_entry_and_all_are_tuned_alike() -> None:
    public = {
        name
        for name in lightning_unlearn.__all__
        if isinstance(cls := getattr(lightning_unlearn, name), type)
        and issubclass(cls, lightning_unlearn.UnlearnCallback)
        and cls.__module__.startswith(("lightning_unlearn.objectives", "lightning_unlearn.language"))
        and not inspect.isabstract(cls)
    }
    assert {entry.name for entry in FACTS} == public
    assert {len(entry.settings) for entry in (*FACTS, *WEIGHTS)} == {3}


def test_the_study_of_weights_crosses_objectives_with_masks_and_with_the_optimizer() -> None:
    objectives = ("GradDiff", "NPO", "SimNPO")
    beside = ("", " + RandomMask", " + MagnitudeMask", " + WAGLE", " + SOUL")
    assert [entry.name for entry in WEIGHTS] == [name + other for name in objectives for other in beside]
    dense = {entry.name: entry for entry in WEIGHTS if "+" not in entry.name}
    assert all(dense[entry.name] == entry for entry in FACTS if entry.name in dense)  # so that their runs are shared


def test_an_optimizer_is_used_and_a_mask_is_drawn_for_each_seed(tiny_lm: Path, tmp_path: Path) -> None:
    (tmp_path / "start").symlink_to(tiny_lm)
    simnpo = {"class_path": "lightning_unlearn.SimNPO"}
    mask = {"class_path": "tests.benchmarks.test_facts.Drawn", "init_args": {"density": 0.1}}
    sophia = {"class_path": "tests.benchmarks.test_facts.Counted", "init_args": {"weight_decay": 0.0}}
    for seed in (3, 4):
        module.unlearn(FactsCell(**CELL, steps=2, seed=seed, setting=Setting(1e-3, (simnpo, mask), sophia)), tmp_path)
    assert Drawn.seeds == [3, 4]
    assert Counted.rates == [1e-3] * 4


def test_only_masks_differ_from_seed_to_seed() -> None:
    drawn = {
        type(built).__name__: built.seed
        for entry in (*FACTS, *WEIGHTS)
        for built in build(entry.settings[0].callbacks, seed=5, reinforced="a folder")
        if hasattr(built, "seed")
    }
    assert drawn == {"RMU": 0, "SOUL": 0, "RandomMask": 5, "WAGLE": 5}


def test_the_reinforced_model_is_the_same_in_every_folder(tiny_lm: Path, tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        start = module.prepare(ModelCell(seed=0, source=str(tiny_lm)), tmp_path / name)
        cell = ModelCell(seed=0, source=start["files"][0], steps=2)
        folders.append([start["sha256"], module.prepare(cell, tmp_path / name)["sha256"]])
    assert folders[0] == folders[1]
    assert len(set(folders[0])) == 2
    who = lightning_unlearn.WhosHarryPotter(str(tmp_path / "a" / "models" / folders[0][1][:16]))
    (built,) = build(FACTS[16].settings[0].callbacks, seed=0, reinforced=who.reinforced)
    assert (type(built), built.reinforced) == (type(who), who.reinforced)


def test_the_score_wants_both_forgetting_and_keeping() -> None:
    assert module.score(result(0.0, 1.0)) == 1.0
    assert module.score(result(1.0, 1.0)) == module.score(result(0.0, 0.0)) == 0.5
    assert module.score({"error": "not finite"}) == 0.0


@pytest.mark.slow
def test_the_best_setting_is_run_on_every_seed_and_nothing_twice(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simnpo = {"class_path": "lightning_unlearn.SimNPO", "init_args": {"beta": 2.5}}
    entries = (
        Entry("SimNPO", tuple(Setting(lr, (simnpo,)) for lr in (1e-2, 1e-3))),
        Entry("Diverging", tuple(Setting(lr, (NAN,)) for lr in (1e-3, 1e-2))),
    )
    monkeypatch.setitem(module.STUDIES, "objectives", entries)
    monkeypatch.setattr(
        module, "score", lambda outcome: outcome["metrics"]["retain_nll"] if "error" not in outcome else 0.0
    )

    def run(entries: list[str], **options: Any) -> dict[str, Any]:
        options |= {"seeds": [1, 2], "steps": 2, "precision": "32-true"}
        return bench_facts(str(tmp_path), str(tiny_lm), entries=entries, **options)

    record = run(["SimNPO"], workers=0)
    found = record["entries"]["SimNPO"]
    by_rate = {tried["setting"]["lr"]: tried["runs"][0]["metrics"]["retain_nll"] for tried in found["tuning"]}
    assert max(by_rate, key=by_rate.__getitem__) == 1e-3  # the larger rate learns the retain rows faster
    assert found["setting"]["lr"] == 1e-3
    assert len({run["metrics"]["forget_nll"] for run in found["runs"]}) == 2
    assert len(record["before"]["answers"]) == 48
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(done) == 6  # the model, before, two settings, two seeds

    record = run([])
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert "not finite" in record["entries"]["Diverging"]["runs"][0]["error"]
    assert json.loads((tmp_path / "objectives.json").read_text()) == record
    table = (tmp_path / "objectives.md").read_text()
    assert table in capsys.readouterr().out
    assert "| before |" in table
    assert "| SimNPO | 1e-3 |" in table
    assert "| Diverging | 1e-3 | stopped on a value that is not finite in 2 runs |" in table
    assert {line.count("|") for line in table.splitlines()} == {13}
    assert "<svg" in (tmp_path / "objectives.svg").read_text()


def test_an_unknown_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['Magic'\].*'SimNPO'"):
        bench_facts(str(tmp_path), entries=["Magic"])
    with pytest.raises(ValueError, match=r"'weights', but got 'layers'"):
        bench_facts(str(tmp_path), study="layers")  # type: ignore[arg-type]
