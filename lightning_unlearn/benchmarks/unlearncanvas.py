"""UnlearnCanvas on the miniature: each method against styles, objects, pairs and sequences of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from lightning_unlearn.benchmarks.grid import Grid, Outcome, select
from lightning_unlearn.benchmarks.miniature import ATTACK, SEARCH
from lightning_unlearn.benchmarks.requests import PairAs
from lightning_unlearn.core.checks import at_least, between, one_of
from lightning_unlearn.core.files import sha256, write_text
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, MINI_CANVAS
from lightning_unlearn.diffusion.canvas.neighbours import Neighbours
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.canvas.side_effects import side_effects
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from lightning_unlearn.report.render_markdown import render_markdown

__all__ = ["AnswerSettings", "CanvasTests", "bench_canvas"]


@dataclass(frozen=True)
class AnswerSettings:
    """The answer set of each model: an image of each style, photos among them, object and seed.

    Args:
        seeds: Seeds of the images.
        steps: Steps of the sampler.
        guidance: Weight of classifier-free guidance.
        keep_images: Keep the images too, as PNG in ``answers/``, beside the verdicts on them; the report shows some.

    Raises:
        ValueError: If a number is out of range, or a seed is missing or there twice.
    """

    seeds: tuple[int, ...] = ANSWER_SEEDS
    steps: int = 20
    guidance: float = 4.0
    keep_images: bool = False

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("guidance", self.guidance, 0)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"An answer set has an image of each seed, but the seeds are {list(self.seeds)}.")


@dataclass(frozen=True)
class CanvasTests:
    """What is measured beside the answer set of a single target.

    Args:
        attacked: Prompts that are attacked in a run, by UnlearnDiffAtk and with random tokens; 0 for none.
        families: Ask for the erased concept in other ways too, see
            [`family_prompts`][lightning_unlearn.diffusion.canvas.families.family_prompts].
        left_out: Styles and objects beside which no row of a run has the concept, for the family "composition".
        pairs: Pairs to erase in runs of their own, each as ``"ember x ring"``, a style and an object.
        pair_as: Whether a pair is one concept, or two requests.
        pair_images: Images of the pair itself; of all others there is one a seed of the answer set.
        sequence: Styles and objects to erase one after another, in runs of their own.

    Raises:
        ValueError: If a name is unknown or there twice, or a number is out of range.
    """

    attacked: int = 5
    families: bool = True
    left_out: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    pair_as: PairAs = "one_concept"
    pair_images: int = 20
    sequence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least("attacked", self.attacked, 0)
        at_least("pair_images", self.pair_images, 1)
        one_of("pair_as", self.pair_as, PairAs)
        for name in self.left_out:
            one_of("left_out", name, (*MINI_CANVAS.all_styles, *MINI_CANVAS.objects))
        for name in self.sequence:
            MINI_CANVAS.kind(name)
        if len(set(self.sequence)) < len(self.sequence):
            raise ValueError(f"A sequence has each target once, but is {list(self.sequence)}.")
        for pair in self.pairs:
            pair_of(pair)


def pair_of(text: str) -> tuple[str, str]:
    """The style and the object of ``"<style> x <object>"``.

    Raises:
        ValueError: If it is not written so, or a name is unknown.

    Example:
        >>> pair_of("ember x ring")
        ('ember', 'ring')
    """
    style, times, object = text.partition(" x ")
    if not times or style not in MINI_CANVAS.styles or object not in MINI_CANVAS.objects:
        raise ValueError(
            f"A pair is written '<style> x <object>', as in 'ember x ring', but got {text!r}. Styles are "
            f"{', '.join(MINI_CANVAS.styles)}; objects {', '.join(MINI_CANVAS.objects)}."
        )
    return style, object


def bench_canvas(
    output_dir: str = "runs/canvas",
    methods: Sequence[str] = (),
    targets: Sequence[str] = ("negative", "mosaic", "ring", "box"),
    seeds: Sequence[int] = (0, 1, 2),
    seeds_of: Mapping[str, Sequence[int]] | None = None,
    names: int = 1,
    answers: AnswerSettings | None = None,
    tests: CanvasTests | None = None,
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
    wandb_project: str | None = None,
) -> dict[str, Any]:
    """Run the UnlearnCanvas benchmark on the miniature pipeline.

    Each method erases each style or object from the pipeline, in a run of its own. The model then draws the answer set,
    and two judges say which style and which object each image shows: UA, IRA and CRA are read from this. FID is to
    rendered images of what is retained. UnlearnDiffAtk and random tokens attack the erased prompt, families of prompts
    ask for the concept otherwise, and accuracies on near and far concepts tell side effects.

    Writes ``canvas.json``, ``report.html``, ``report.md``, ``report.json``, ``summary.csv`` and ``matrices/``. Finished
    runs are kept in ``runs/``: after a kill, or with more methods, the same command runs only what is missing, and what
    ran on code that has changed. Started several times on one folder, also on several machines, it shares the runs.

    Args:
        output_dir: Folder to write.
        methods: Names of the methods to run; all if empty.
        targets: Styles and objects to erase, one a run; all if empty.
        seeds: Seeds of the runs.
        seeds_of: Seeds of single methods, in place of ``seeds``.
        names: How many names of a concept are erased, from the first, in prompts, captions and arguments. It has three;
            by the others its families of prompts ask for it.
        answers: The answer set.
        tests: What else is measured.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are quicker than one of two. 0 runs in this process.
        keep_stale: Keep the results of runs whose source files have changed since.
        wandb_project: Project of Weights & Biases that numbers, tables and figures are logged to.

    Returns:
        What ``canvas.json`` holds: ``names``, ``seeds`` of the answer set, ``base``, and ``methods``, of which each
        target has a list of runs; ``pairs`` of each method the same by pair, and ``sequential`` a list of runs. Paths
        are relative to the folder.

    Raises:
        ValueError: If a method or target is unknown, or a number is out of range.
    """
    answers, tests = answers or AnswerSettings(), tests or CanvasTests()
    between("names", names, 1, 3)
    chosen = select("methods", methods, METHODS)
    select("methods", list(seeds_of or {}), chosen, " among those that are run")
    erased = list(select("targets", targets, {name: name for name in (*MINI_CANVAS.styles, *MINI_CANVAS.objects)}))
    seeded = {name: list((seeds_of or {}).get(name, seeds)) for name in chosen}
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
    return _written(record, plan.grid.folder, wandb_project)


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

    @property
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
        cells = {
            (name, target, seed): ErasedCell(
                **{**asdict(asked[target]), "seed": seed, "base": cell.key},
                **{"method": self.methods[name], "attacked": tests.attacked, "families": tests.families},
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


def _written(record: dict[str, Any], folder: Path, wandb_project: str | None) -> dict[str, Any]:
    """Write the record and its report."""
    text = json.dumps(record, indent=2) + "\n"
    record = json.loads(text)
    write_text(folder / "canvas.json", text)
    logger = None
    if wandb_project is not None:
        from lightning_unlearn.core.lightning import WandbLogger

        logger = WandbLogger(project=wandb_project, config=record["answers"] | record["tests"])
    report = write_canvas_report(record, folder, logger)
    first = {"sections": report.sections[:1], "provenance": {}, "limits": [], "terms": {}}
    print(render_markdown(replace(report, **first)))
    print(f"Open {folder / 'report.html'}.")
    return record
