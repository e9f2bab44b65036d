"""Table of a benchmark of language models: its numbers, and what each attack brings back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_unlearn.audit.gates import gate
from lightning_unlearn.benchmarks.grid import Outcome
from lightning_unlearn.benchmarks.language_base import LanguageBenchmark
from lightning_unlearn.benchmarks.language_figure import strengths
from lightning_unlearn.benchmarks.table import markdown, spread
from lightning_unlearn.language.eval_logs import EvalLog, read_eval_log

__all__ = ["add_comparison", "language_table", "log_of"]


def log_of(folder: Path, outcome: Outcome) -> EvalLog:
    """The evaluation of the model of a run."""
    return read_eval_log(folder / outcome["files"][0])


def add_comparison(
    record: dict[str, Any], benchmark: LanguageBenchmark, folder: Path, logs: dict[str, EvalLog]
) -> None:
    """Of each reported model the numbers of the table, and the knowledge that each attack finds."""
    anchors = record["anchors"]
    for name, outcome in anchors.items():
        outcome["compared"] = benchmark.compared(logs[name], logs.get("retrained"))
        outcome["kappa"] = _kappas(outcome, anchors)
    for entry in record["entries"].values():
        for run in entry["runs"]:
            if "error" not in run:
                run["compared"] = benchmark.compared(log_of(folder, run), logs.get("retrained"))
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


def language_table(record: dict[str, Any]) -> str:
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
    if record.get("requests", 1) > 1:
        text += "\n" + _requests(record["entries"])
    if not first["kappa"]:
        return text
    attacks = [f"{attack} ({score})" for attack, scores in first["kappa"].items() for score in scores]

    def kappas(run: Outcome) -> dict[str, Any]:
        return {f"{attack} ({score})": v for attack, scores in run["kappa"].items() for score, v in scores.items()}

    measured = list(strengths([first]))
    text = f"{text}\n{markdown(['ES', 'lr', *measured], cells(lambda run: strengths([run]), measured))}"
    return f"{text}\n{markdown(['kappa', 'lr', *attacks], cells(kappas, attacks))}"


def _requests(entries: Mapping[str, Any]) -> str:
    """Mean extraction strength of all requests so far after each, and the loss of the rows to keep."""
    rows = []
    for name, entry in entries.items():
        courses = [run["requests"] for run in entry["runs"] if "error" not in run]
        after = list(zip(*courses, strict=True))  # by request, of each run
        strengths = [_spread([sum(x["strength"]) / len(x["strength"]) for x in runs]) for runs in after]
        losses = [_spread([loss for x in runs for loss in x["retain_loss"]]) for runs in after]
        rows.append([name, *(f"{s} / {loss}" if loss else s for s, loss in zip(strengths, losses, strict=True))])
    count = max((len(row) for row in rows), default=1) - 1
    return markdown(["ES so far / retain loss", *(f"request {i + 1}" for i in range(count))], rows)


def _spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation; of nothing that was measured in each run, nothing."""
    return spread([value for value in values if value is not None], 3) if None not in values else ""
