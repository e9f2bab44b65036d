"""UnlearnCanvas on the miniature: each method against styles, objects, pairs and sequences of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_unlearn.benchmarks.beyond import family_counts
from lightning_unlearn.benchmarks.canvas_methods import METHODS, CanvasMethod
from lightning_unlearn.benchmarks.canvas_report import write_canvas_report
from lightning_unlearn.benchmarks.canvas_runs import (
    BaseCell,
    ErasedCell,
    FamilyCell,
    PairCell,
    SequenceCell,
    base_answers,
    base_families,
    erased_answers,
    pair_answers,
    sequence_answers,
)
from lightning_unlearn.benchmarks.canvas_settings import AnswerSettings, CanvasTests, pair_of
from lightning_unlearn.benchmarks.grid import Grid, Outcome, select
from lightning_unlearn.benchmarks.miniature import ATTACK, SEARCH
from lightning_unlearn.core.checks import between
from lightning_unlearn.core.files import sha256, write_text
from lightning_unlearn.core.lightning import resolve
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS
from lightning_unlearn.diffusion.canvas.neighbours import Neighbours
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.canvas.side_effects import side_effects
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from lightning_unlearn.report.render_markdown import render_markdown

__all__ = ["bench_canvas"]

_ANSWERS, _TESTS = AnswerSettings(), CanvasTests()


def bench_canvas(
    output_dir: str = "runs/canvas",
    methods: Sequence[str] = (),
    targets: Sequence[str] = ("negative", "mosaic", "ring", "box"),
    seeds: Sequence[int] = (0, 1, 2),
    seeds_of: Mapping[str, Sequence[int]] | None = None,
    names: int = 1,
    answers: AnswerSettings = _ANSWERS,
    tests: CanvasTests = _TESTS,
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
    wandb_project: str | None = None,
) -> dict[str, Any]:
    """Run the UnlearnCanvas benchmark on the miniature pipeline.

    Each method erases each style or object from the pipeline, in a run of its own. The model then draws the answer set,
    and two judges classify the style and the object of each image; UA, IRA and CRA are computed from their verdicts.
    FID is computed to rendered images of what is retained. The erased prompt is attacked with UnlearnDiffAtk and with
    random tokens, families of prompts ask for the concept in other ways, and accuracies on near and far concepts show
    side effects.

    Writes ``canvas.json``, ``report.html``, ``report.md``, ``report.json``, ``summary.csv`` and ``matrices/``. Finished
    runs are kept in ``runs/``: after a kill, or with more methods, the same command runs only what is missing, and what
    ran on code that has changed. Started several times on one folder, also on several machines, it shares the runs.

    Args:
        output_dir: Folder to write.
        methods: Names of the methods to run; all if empty.
        targets: Styles and objects to erase, one per run; all if empty.
        seeds: Seeds of the runs.
        seeds_of: Seeds of single methods, instead of ``seeds``.
        names: Number of a concept's three names that are erased, from the first, in prompts, captions and arguments.
            Families of prompts ask for the concept by the remaining names.
        answers: The answer set.
        tests: What else is measured.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are faster than one of two. With 0, runs are made in this
            process.
        keep_stale: Keep the results of runs whose source files have changed since.
        wandb_project: Project of Weights & Biases to which numbers, tables and figures are logged.

    Returns:
        What ``canvas.json`` holds: ``names``, ``seeds`` of the answer set, ``base``, and ``methods``, of which each
        target has a list of runs; ``pairs`` of each method the same by pair, and ``sequential`` a list of runs. Paths
        are relative to the folder.

    Raises:
        ValueError: If a method or target is unknown, or a number is out of range.
    """
    between("names", names, 1, 3)
    chosen = select("methods", methods, METHODS)
    select("methods", list(seeds_of or {}), chosen, " among those that are run")
    erased = list(select("targets", targets, {name: name for name in (*MINI_CANVAS.styles, *MINI_CANVAS.objects)}))
    seeded = {name: list((seeds_of or {}).get(name, seeds)) for name in chosen}
    settings = {"methods": list(chosen), "targets": erased, **asdict(tests)}
    logger = None if wandb_project is None else _logger(wandb_project, settings)  # before hours of work
    plan = _Plan(Grid(output_dir, workers, keep_stale), chosen, seeded, names, answers, tests, threads)
    base, runs = plan.single(erased)
    record = {
        **{"names": "mini", "seeds": list(answers.seeds), "targets": erased, "erased_names": names},
        **{"answers": asdict(answers), "tests": asdict(tests), "attack": ATTACK | SEARCH, "threads": threads},
        **{"pipeline_sha256": plan.shared["pipeline_sha256"], "library": version("lightning-unlearn")},
        **{"base": base, "methods": runs},
        **({"pairs": plan.pairs()} if tests.pairs else {}),
        **({"sequential": plan.sequences()} if tests.sequence else {}),
    }
    return _written(record, plan.grid.folder, logger)


@dataclass(frozen=True)
class _Plan:
    """The cells of the benchmark, and what their results come to."""

    grid: Grid
    methods: Mapping[str, CanvasMethod]
    seeds: Mapping[str, Sequence[int]]
    names: int
    answers: AnswerSettings
    tests: CanvasTests
    threads: int

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What all cells have in common."""
        files = sorted(file for file in miniature_pipeline().rglob("*") if file.is_file())
        answers = asdict(self.answers)
        drawing = {"answer_seeds": tuple(answers.pop("seeds")), **answers}
        return {"threads": self.threads, "pipeline_sha256": sha256(*files), **drawing}

    @property
    def numbered(self) -> list[tuple[str, int]]:
        return [(name, seed) for name in self.methods for seed in self.seeds[name]]

    def single(self, targets: Sequence[str]) -> tuple[Outcome, dict[str, dict[str, list[Outcome]]]]:
        """The base's results, and those of each method and target."""
        tests, cell = self.tests, BaseCell(seed=0, **self.shared)
        base = self.grid.run(base_answers, {"base": cell}, "before erasure")["base"]
        asked = {
            target: FamilyCell(
                **{**self.shared, "seed": 0, "target": target, "names": self.names},
                left_out=tuple(name for name in tests.left_out if name in concept(target).partners),
            )
            for target in targets
        }
        before = self.grid.run(base_families, asked, "families before erasure") if tests.families else {}
        more: dict[str, Any] = {"attacked": tests.attacked, "families": tests.families, "base": cell.key}
        cells = {
            (name, target, seed): ErasedCell(
                **{**asdict(asked[target]), **more, "seed": seed, "method": self.methods[name]}
            )
            for name, seed in self.numbered
            for target in targets
        }
        runs = self.grid.run(erased_answers, cells, "erasure")
        first = self._scores(base)
        found = {key: self._completed(run, key[1], base, first, before.get(key[1])) for key, run in runs.items()}
        return base, {n: {t: [found[n, t, seed] for seed in self.seeds[n]] for t in targets} for n in self.methods}

    def pairs(self) -> dict[str, dict[str, list[Outcome]]]:
        """The results of each method and pair."""
        tests = self.tests
        settings = {**self.shared, "names": self.names, "pair_as": tests.pair_as, "pair_images": tests.pair_images}
        cells = {}
        for name, seed in self.numbered:
            for pair in tests.pairs:
                style, object = pair_of(pair)
                method = self.methods[name]
                cells[name, pair, seed] = PairCell(**settings, method=method, style=style, object=object, seed=seed)
        runs = self.grid.run(pair_answers, cells, "pairs")
        return {n: {p: [runs[n, p, seed] for seed in self.seeds[n]] for p in tests.pairs} for n in self.methods}

    def sequences(self) -> dict[str, list[Outcome]]:
        """The results of each method against the sequence."""
        settings = {**self.shared, "names": self.names, "targets": tuple(self.tests.sequence)}
        cells = {
            (name, seed): SequenceCell(**settings, method=self.methods[name], seed=seed) for name, seed in self.numbered
        }
        runs = self.grid.run(sequence_answers, cells, "sequences")
        return {name: [runs[name, seed] for seed in self.seeds[name]] for name in self.methods}

    def _scores(self, run: Outcome) -> AnswerScores:
        return AnswerScores.read(self.grid.folder / run["scores"], MINI_CANVAS)

    def _completed(
        self, run: Outcome, target: str, base: Outcome, first: AnswerScores, families: Outcome | None
    ) -> Outcome:
        """A run with what is read from it and from the base together."""
        near = Neighbours(**base["neighbours"][target])
        told = {**run, "side_effects": side_effects(self._scores(run), first, target, near).to_dict()}
        if families is not None:
            counts = family_counts(run["families"], families["families"], len(self.answers.seeds))
            told["families"] = {name: count.to_dict() for name, count in counts.items()}
        return told


def _logger(project: str, settings: dict[str, Any]) -> Any:
    try:
        return resolve("loggers.WandbLogger")(project=project, config=settings)
    except ModuleNotFoundError:
        raise ImportError('wandb_project needs wandb: pip install "lightning-unlearn[wandb]"') from None


def _written(record: dict[str, Any], folder: Path, logger: Any) -> dict[str, Any]:
    """Write the record and its report."""
    text = json.dumps(record, indent=2) + "\n"
    record = json.loads(text)
    write_text(folder / "canvas.json", text)
    report = write_canvas_report(record, folder, logger)
    if logger is not None:
        logger.experiment.finish()
    print(render_markdown(replace(report, sections=report.sections[:1], provenance={}, limits=[], terms={})))
    print(f"Open {folder / 'report.html'}.")
    return record
