"""Harness of the published benchmarks of language-model unlearning: targets, runs, attacks and tables."""

from __future__ import annotations

import hashlib
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader

from lightning_unlearn.audit.gates import gate
from lightning_unlearn.audit.measures import half_precision
from lightning_unlearn.benchmarks.entries import QUESTIONS, Entry, Setting
from lightning_unlearn.benchmarks.grid import Cell, Grid, Outcome, select, separate_seeds
from lightning_unlearn.benchmarks.runs import Description, build, quiet_libraries, trainer
from lightning_unlearn.benchmarks.table import markdown, spread, write_record
from lightning_unlearn.core.files import replacing, sha256
from lightning_unlearn.core.lightning import resolve, seed_everything
from lightning_unlearn.core.memory import peak_memory
from lightning_unlearn.functional.language.extraction import extraction_strength
from lightning_unlearn.language.attacks import LanguageAttack, LanguageRelearning
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.data.token_rows import collate_tokens
from lightning_unlearn.language.eval_logs import EvalLog, LoggedMetric, logged_rows, read_eval_log, write_eval_log
from lightning_unlearn.language.knowledge import Knowledge
from lightning_unlearn.language.packaged import HUB_MODEL, packaged_model
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.token_stats import format_of, token_stats
from lightning_unlearn.language.tokens import TokenRow

__all__ = [
    "LanguageBenchmark",
    "Protocol",
    "RunCell",
    "TargetCell",
    "bench_language",
    "located",
    "question_row",
    "row_losses",
]

Rows = dict[str, list[dict[str, Any]]]
Attacks = dict[str, tuple[LanguageAttack, list[Probe]]]
"""Attacks by name, each with the probes that it is scored on."""


class LanguageBenchmark(ABC):
    """A published benchmark: its rows, what is measured on a model, and what counts as good.

    The arguments of a constructor are JSON values that it keeps under their names: each run's process builds the
    benchmark again.
    """

    name: ClassVar[str]
    """Name of the benchmark, and of the files that are written."""
    targets: ClassVar[dict[str, tuple[str, ...]]] = {
        "original": ("forget", "retain"),
        "retrained": ("retain",),
        "retrained again": ("retain",),
    }
    """The sets that each model to compare with is trained on, none for the model as it is. ``"original"`` is what
    unlearning starts from; ``"retrained"`` is the control, which a benchmark may lack."""
    entries: ClassVar[tuple[Entry, ...]] = QUESTIONS
    """The methods that are compared."""
    max_new_tokens: int = 64
    """Longest generated answer."""

    @property
    def description(self) -> Description:
        """The benchmark with its arguments, from which it can be built again."""
        arguments = {name: getattr(self, name) for name in signature(type(self)).parameters}
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}

    @abstractmethod
    def sources(self) -> list[str]:
        """The files that are read, or names on the hub."""

    @abstractmethod
    def rows(self) -> Rows:
        """Rows by set: ``"forget"``, ``"retain"``, and further sets that are never trained on."""

    def data(self, rows: Rows, protocol: Protocol, seed: int = 0) -> LanguageDataModule:
        """A data module of rows to forget, or to train on, and of rows to keep, where there are some."""
        return LanguageDataModule(
            rows["forget"],
            rows.get("retain"),
            max_length=protocol.max_length,
            batch_size=protocol.batch_size,
            seed=seed,
        )

    @abstractmethod
    def evaluate(self, module: LitCausalLM, generate: bool) -> EvalLog:
        """Everything that the benchmark measures on one model.

        Args:
            module: The model.
            generate: Whether to measure generated answers too, which takes most of the time.
        """

    def probes(self) -> list[Probe]:
        """Questions to the forget rows, for attacks; none where there are no attacks."""
        return []

    def attacks(self) -> Attacks:
        """Attacks on the original, the retrained models and the reported runs."""
        return {}

    @abstractmethod
    def compared(self, log: EvalLog, retrained: EvalLog | None) -> dict[str, float]:
        """The numbers of the table, from the log of a model and of the retrained one, if there is one."""

    @abstractmethod
    def score(self, log: EvalLog, original: EvalLog, retrained: EvalLog | None) -> float:
        """What tuning maximises."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How targets are trained and methods run.

    Args:
        learn_epochs: Passes over the rows to train a target.
        learn_lr: Learning rate of targets.
        epochs: Passes over the forget rows to unlearn.
        batch_size: Rows of a step; forget rows when unlearning, with as many to keep.
        max_length: Longest row in tokens.
        precision: Precision of the Trainer, and of the forward passes of what is measured.
    """

    learn_epochs: int = 5
    learn_lr: float = 3e-4
    epochs: int = 5
    batch_size: int = 4
    max_length: int = 512
    precision: str = "bf16-mixed"


@dataclass(frozen=True, kw_only=True)
class TargetCell(Cell):
    """A model that is trained on some sets of a benchmark."""

    benchmark: Description
    protocol: Protocol
    source: str
    data_sha256: str
    sets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunCell(Cell):
    """A setting of a method on a target, and what is measured afterwards."""

    benchmark: Description
    protocol: Protocol
    model: str
    data_sha256: str
    setting: Setting
    generate: bool = False
    attacked: bool = False


def bench_language(
    benchmark: LanguageBenchmark,
    output_dir: str | None = None,
    model: str | None = None,
    entries: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2),
    tuning_seed: int = 0,
    protocol: Protocol | None = None,
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Train the models to compare with, tune and run each method, attack what comes out, and write a table.

    The original model is trained on all rows, and two retrained ones on those to keep; the second shows what two
    retrained models differ by. Each method runs with each of its settings on ``tuning_seed``, and with the best one on
    ``seeds``, where it is measured whole and attacked. Writes ``<name>.json`` and ``<name>.md``; the evaluation of each
    model is in ``logs/``, in the format of open-unlearning.

    Finished runs are kept: the same command, after a kill or with more entries, runs what is missing.

    Args:
        benchmark: ``TOFUBenchmark``, ``MUSEBenchmark``, ``WMDPBenchmark``, ``CopyrightBenchmark``, ``DetoxBenchmark``
            or one of your own.
        output_dir: Folder to write; by default ``runs/<name>``.
        model: Hub id, folder or GGUF file of the model to start from; by default that of the demo.
        entries: Names of the methods to run; all if empty.
        seeds: Seeds that are reported.
        tuning_seed: Seed that settings are chosen on.
        protocol: How models are trained.
        threads: Threads of a run.
        workers: Runs at a time; 0 runs in this process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``<name>.json`` holds.

    Raises:
        ValueError: If an entry is unknown, a seed is used for both, or the data can't be read.
    """
    separate_seeds([tuning_seed], seeds)
    benchmark.rows()  # wrong data is found here, before any model is trained
    chosen = select("entries", entries, {entry.name: entry for entry in benchmark.entries})
    grid = Grid(output_dir or f"runs/{benchmark.name}", workers, keep_stale)
    source, protocol = model or packaged_model() or HUB_MODEL, protocol or Protocol()
    shared: Any = {
        **{"benchmark": benchmark.description, "protocol": protocol, "threads": threads},
        "data_sha256": _data_hash(benchmark.sources()),
    }
    targets = {
        name: TargetCell(**shared, seed=tuning_seed + name.endswith("again"), source=source, sets=sets)
        for name, sets in benchmark.targets.items()
    }
    folders = {name: outcome["files"][0] for name, outcome in grid.run(train, targets, "targets").items()}
    untouched = RunCell(**shared, seed=tuning_seed, model="", setting=Setting(lr=1.0), generate=True, attacked=True)
    anchors = grid.run(unlearn, {n: replace(untouched, model=f) for n, f in folders.items()}, "anchors")
    logs = {name: _log(grid.folder, outcome) for name, outcome in anchors.items()}

    def cell(entry: str, setting: Setting, seed: int) -> RunCell:
        whole = seed != tuning_seed  # settings are chosen by likelihoods
        start = folders["original"]
        return replace(untouched, model=start, setting=setting, seed=seed, generate=whole, attacked=whole)

    def score(outcome: Outcome) -> float:
        if "error" in outcome:
            return 0.0
        return benchmark.score(_log(grid.folder, outcome), logs["original"], logs.get("retrained"))

    methods = {name: entry.settings for name, entry in chosen.items()}
    tuned = grid.tune(unlearn, methods, cell, score, [tuning_seed], seeds)
    record: dict[str, Any] = {
        **{"model": Path(source).name, "library": version("lightning-unlearn")},
        **{**shared, "protocol": asdict(protocol)},
        **{"seeds": list(seeds), "tuning_seed": tuning_seed, "anchors": anchors, "entries": tuned},
    }
    _compare(record, benchmark, grid.folder, logs)
    return write_record(grid.folder / benchmark.name, record, table)


def train(cell: TargetCell, folder: Path) -> Outcome:
    """Fine-tune the source on some sets, if any, and save it as a folder that is named by the hash of its weights."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    (benchmark,) = build([cell.benchmark])
    protocol, rows = cell.protocol, benchmark.rows()
    module = LitCausalLM(cell.source, lr=protocol.learn_lr, schedule="linear", warmup=0.1)
    start = time.perf_counter()
    if cell.sets:
        data = benchmark.data({"forget": [row for name in cell.sets for row in rows[name]]}, protocol, cell.seed)
        data.prompt = replace(data.prompt, tokenizer=module.tokenizer)
        data.setup("fit")
        generator = torch.Generator().manual_seed(cell.seed)
        loader = DataLoader(
            data.sets["forget"], protocol.batch_size, shuffle=True, collate_fn=collate_tokens, generator=generator
        )
        options: Any = {"gradient_clip_val": 1.0, "precision": protocol.precision}
        trainer(max_epochs=protocol.learn_epochs, **options).fit(module, loader)
    seconds = time.perf_counter() - start
    draft = folder / "models" / cell.key
    module.save_pretrained(draft)
    digest = sha256(*sorted(draft.glob("*.safetensors")))
    with replacing(folder / "models" / digest[:16]) as part:
        draft.rename(part)
    return {"sha256": digest, "seconds": seconds, "files": [f"models/{digest[:16]}"]}


def unlearn(cell: RunCell, folder: Path) -> Outcome:
    """One run: unlearn, measure, attack. Without callbacks the model is measured as it is."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    (benchmark,) = build([cell.benchmark])
    module = LitCausalLM(str(folder / cell.model), lr=cell.setting.lr)
    cost: dict[str, float] = {}
    if cell.setting.callbacks:
        cost = _fit(cell, benchmark, module)
        if "error" in cost:
            return cost
    path = folder / "logs" / f"{cell.key}.json"
    with half_precision(module, "bf16" if cell.protocol.precision.startswith("bf16") else "32"):
        write_eval_log(path, benchmark.evaluate(module, cell.generate))
        found = _attacked(benchmark, module) if cell.attacked else {"knowledge": {}, "curves": {}}
    return {**cost, **found, "files": [str(path.relative_to(folder))]}


def located(source: str) -> str:
    """The absolute path of a local file or folder, which a run finds from anywhere; a hub id as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _data_hash(sources: Iterable[str]) -> str:
    """Hash of the contents of local files; of rows on the hub, of their names alone."""
    digests = [sha256(source) if Path(source).is_file() else source for source in sources]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def question_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with ``question`` and ``answer`` of one with ``prompt`` and ``response``; another one as it is."""
    if "prompt" in row and "response" in row:
        return {"question": row["prompt"], "answer": row["response"]}
    return row


def row_losses(module: LitCausalLM, rows: Sequence[dict[str, Any]]) -> LoggedMetric:
    """Mean negative log-likelihood per token of questions with answers, or of texts, in nats."""
    prompt_format = format_of(module)
    tokens = [
        prompt_format.row(row["question"], row["answer"])
        if "question" in row
        else TokenRow([], prompt_format.tokenizer(row["text"], verbose=False)["input_ids"])
        for row in rows
    ]
    losses = torch.stack([-part.log_prob.mean() for part in token_stats(module, tokens)])
    return logged_rows({"avg_loss": losses}, of="avg_loss")


def _attacked(benchmark: LanguageBenchmark, module: LitCausalLM) -> dict[str, Any]:
    """What the model knows of each probe as it is and under each attack, and the curves of relearning."""
    probes = benchmark.probes()
    if not probes:
        return {"knowledge": {}, "curves": {}}
    known = {"none": _scores(_strength(module, probes))}
    curves: dict[str, dict[str, list[Any]]] = {}
    for name, (attack, scored) in benchmark.attacks().items():
        if isinstance(attack, LanguageRelearning):
            trace = attack.trace(module, scored, _strength)
            known[name] = _scores(trace.knowledge[-1])
            curves[name] = {"steps": trace.steps, "values": trace.values(), "taught_loss": trace.taught_loss}
        else:
            known[name] = _scores(attack.knowledge(module, scored, _strength))
    return {"knowledge": known, "curves": curves}


def _strength(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
    """Extraction strength alone: generated answers would take most of the time of an attack."""
    stats = token_stats(module, probes)
    return Knowledge(torch.stack([extraction_strength(part.hit, drop_last=part.ended) for part in stats]), None)


def _fit(cell: RunCell, benchmark: LanguageBenchmark, module: LitCausalLM) -> dict[str, Any]:
    setting, protocol, rows = cell.setting, cell.protocol, benchmark.rows()
    if optimizer := setting.optimizer:
        described = {**optimizer, "init_args": {**optimizer["init_args"], "lr": setting.lr}}
        module.configure_optimizers = lambda: resolve("cli.instantiate_class")(module.parameters(), described)  # type: ignore[method-assign]
    data = benchmark.data({name: rows[name] for name in ("forget", "retain") if name in rows}, protocol, cell.seed)
    # If a run diverges, its last finite checkpoint is of no use here.
    with tempfile.TemporaryDirectory() as scratch:
        options: Any = {"precision": protocol.precision, "gradient_clip_val": 1.0, "default_root_dir": scratch}
        run = trainer(build(setting.callbacks, seed=cell.seed), max_epochs=protocol.epochs, **options)
        start = time.perf_counter()
        try:
            run.fit(module, data)
        except FloatingPointError as error:
            return {"error": str(error)}
    return {"seconds": time.perf_counter() - start, "peak_memory_bytes": peak_memory("cpu"), "steps": run.global_step}


def _scores(knowledge: Knowledge) -> dict[str, list[float]]:
    parts = {"strength": knowledge.strength, "matched": knowledge.matched}
    return {name: values.tolist() for name, values in parts.items() if values is not None}


def _log(folder: Path, outcome: Outcome) -> EvalLog:
    return read_eval_log(folder / outcome["files"][0])


def _compare(record: dict[str, Any], benchmark: LanguageBenchmark, folder: Path, logs: dict[str, EvalLog]) -> None:
    """Of each reported model the numbers of the table, and the knowledge that each attack finds."""
    anchors = record["anchors"]
    for name, outcome in anchors.items():
        outcome["compared"] = benchmark.compared(logs[name], logs.get("retrained"))
        outcome["kappa"] = _kappas(outcome, anchors)
    for entry in record["entries"].values():
        for run in entry["runs"]:
            if "error" not in run:
                run["compared"] = benchmark.compared(_log(folder, run), logs.get("retrained"))
                run["kappa"] = _kappas(run, anchors)


def _kappas(outcome: Outcome, anchors: dict[str, Outcome]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    if "retrained" not in anchors:
        return found
    for attack, scores in outcome["knowledge"].items():
        for score, values in scores.items():
            original, control = (anchors[n]["knowledge"][attack][score] for n in ("original", "retrained"))
            result = gate(original, control, values)
            found.setdefault(attack, {})[score] = result.kappa
    return found


def table(record: dict[str, Any]) -> str:
    """Markdown: the benchmark's numbers and what each attack brings back; mean ± standard deviation over the seeds."""
    groups: dict[str, list[Outcome]] = {name: [outcome] for name, outcome in record["anchors"].items()}
    groups |= {name: entry["runs"] for name, entry in record["entries"].items()}
    rates = {name: entry["setting"]["lr"] for name, entry in record["entries"].items()}
    finite = {name: [run for run in runs if "error" not in run] for name, runs in groups.items()}
    first = next(iter(record["anchors"].values()))
    columns = list(first["compared"])

    def cells(read: Callable[[Outcome], dict[str, Any]], names: Sequence[str]) -> list[list[str]]:
        rows = []
        for name, runs in finite.items():
            rate = f"{rates[name]:.0e}".replace("e-0", "e-") if name in rates else ""
            if len(runs) < len(groups[name]):
                missing = len(groups[name]) - len(runs)
                rows.append([name, rate, f"stopped on a value that is not finite in {missing} runs"])
            else:
                values = [[read(run).get(column) for run in runs] for column in names]
                rows.append([name, rate, *map(_spread, values)])
        return rows

    text = markdown(["", "lr", *columns], cells(lambda run: run["compared"], columns))
    if not first["kappa"]:
        return text
    attacks = [f"{attack} ({score})" for attack, scores in first["kappa"].items() for score in scores]

    def kappas(run: Outcome) -> dict[str, Any]:
        return {f"{attack} ({score})": v for attack, scores in run["kappa"].items() for score, v in scores.items()}

    return f"{text}\n{markdown(['kappa', 'lr', *attacks], cells(kappas, attacks))}"


def _spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation; of nothing that was measured in each run, nothing."""
    return spread([value for value in values if value is not None], 3) if None not in values else ""
