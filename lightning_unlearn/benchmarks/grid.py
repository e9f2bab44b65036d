"""Grids of runs: each in a fresh process, finished once, and tuned at an equal budget."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from lightning_unlearn.benchmarks.claims import Claims
from lightning_unlearn.core.code import import_paths, sources
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.progress import counter

__all__ = ["Cell", "Grid", "Outcome", "select", "separate_seeds"]

Outcome = dict[str, Any]
"""What a run gives, as JSON."""

C = TypeVar("C", bound="Cell")
K = TypeVar("K")
T = TypeVar("T")

_POLL = 2.0  # seconds between two looks at runs of other processes


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything other than the code that the result of a run depends on; benchmarks add fields that fit into JSON.

    Args:
        seed: Seed of the run.
        threads: Threads of the run, since the rounding of sums depends on their number.
    """

    seed: int
    threads: int = 1

    @property
    def key(self) -> str:
        """A hash of the cell's type and fields."""
        fields = json.dumps([type(self).__name__, asdict(self)], sort_keys=True)
        return hashlib.sha256(fields.encode()).hexdigest()[:16]


Work = tuple[Callable[[Any, Path], Outcome], Cell, Path, Path, dict[str, str]]


class Grid:
    """Runs in a folder, which can be killed and resumed.

    The result of a run is kept in ``<folder>/runs/<key of the cell>.json`` with the cell and a hash of each source file
    that the run imports. If one of these files has changed, the result is stale: it is reported, and the run is
    repeated.

    Several processes or machines can share the folder: with the same command, each of them does a part of the runs. A
    run in progress has a claim in ``<folder>/claims/``, see [`Claims`][lightning_unlearn.benchmarks.claims.Claims]; the
    other processes continue with other runs and wait at the end. The claim of a killed process becomes stale, and
    another process takes it over.

    Args:
        folder: Where to keep results; ``files`` in a result are paths in it that belong to the result.
        workers: Processes at a time. With 0, runs are made in this process, for a debugger.
        keep_stale: Keep stale results.
    """

    def __init__(self, folder: str | Path, workers: int = 1, keep_stale: bool = False) -> None:
        self.folder, self.workers, self.keep_stale = Path(folder).resolve(), workers, keep_stale

    def run(
        self, run: Callable[[C, Path], Outcome], cells: Mapping[K, C], description: str, together: int = 1
    ) -> dict[K, Outcome]:
        """Run the cells that have no result yet.

        Args:
            run: A function of a module that is given a cell and the folder, in a fresh process.
            cells: What to run; equal ones run once.
            description: Name of the runs.
            together: Runs of a process, one after another. With one, its peak memory is that of the run; with more,
                short runs share the time that imports take.

        Returns:
            The result of each.

        Raises:
            RuntimeError: If a run fails. The results of those before it are kept.
        """
        unique = {cell.key: cell for cell in cells.values()}
        paths = {key: tuple(sorted(set(import_paths(asdict(cell))))) for key, cell in unique.items()}
        hashes = {named: sources(run, named) for named in set(paths.values())}
        current = {key: hashes[named] for key, named in paths.items()}
        known = {key: record for key in unique if (record := self._record(key)) is not None}
        stale = {key: changed for key in known if (changed := _changed(known[key]["sources"], current[key]))}
        missing = [key for key in unique if key not in known or (key in stale and not self.keep_stale)]
        self._say(description, len(known) - len(stale), len(unique), stale)
        work: dict[str, Work] = {key: (run, unique[key], self.folder, self._path(key), current[key]) for key in missing}
        with counter(description, len(unique), len(unique) - len(missing), "run") as progress:
            self._share(work, together, description, progress)
        return {
            name: json.loads(self._path(cell.key).read_text(encoding="utf-8"))["result"] for name, cell in cells.items()
        }

    def tune(
        self,
        run: Callable[[C, Path], Outcome],
        methods: Mapping[K, Sequence[Any]],
        cell: Callable[[K, Any, int], C],
        score: Callable[[Outcome], float],
        tuning_seeds: Sequence[int],
        seeds: Sequence[int],
        together: int = 1,
    ) -> dict[K, dict[str, Any]]:
        """Choose a setting of each method at an equal budget, and run it on the seeds that are reported.

        Args:
            run: As of [`run`][lightning_unlearn.benchmarks.grid.Grid.run].
            methods: The settings of each method, dataclasses; of equally good ones the first is chosen.
            cell: The cell of a method, a setting and a seed.
            score: What is to be high.
            tuning_seeds: Seeds that settings are chosen on.
            seeds: Seeds that are reported.
            together: As of [`run`][lightning_unlearn.benchmarks.grid.Grid.run].

        Returns:
            Of each method, as JSON, the best ``setting``, its ``runs`` on the reported seeds, and ``tuning``: each
            setting with its runs on the tuning seeds and their mean score.

        Raises:
            ValueError: If methods differ in their number of settings.
        """
        budgets = {name: len(settings) for name, settings in methods.items()}
        if len(set(budgets.values())) > 1:
            raise ValueError(f"All methods must have the same number of settings to choose from, but got {budgets}.")
        numbered = [(name, i) for name, settings in methods.items() for i in range(len(settings))]
        trials = {(name, i, seed): cell(name, methods[name][i], seed) for name, i in numbered for seed in tuning_seeds}
        outcomes = self.run(run, trials, "tuning", together)
        tuning: dict[K, list[dict[str, Any]]] = {name: [] for name in methods}
        for name, i in numbered:
            runs = [outcomes[name, i, seed] for seed in tuning_seeds]
            mean = float(np.mean([*map(score, runs)]))
            tuning[name].append({"setting": asdict(methods[name][i]), "score": mean, "runs": runs})
        best = {name: int(np.argmax([tried["score"] for tried in tuning[name]])) for name in methods}
        reports = {(name, seed): cell(name, methods[name][best[name]], seed) for name in methods for seed in seeds}
        reported = self.run(run, reports, "seeds", together)
        return {
            name: {
                "setting": tuning[name][best[name]]["setting"],
                "tuning": tuning[name],
                "runs": [reported[name, seed] for seed in seeds],
            }
            for name in methods
        }

    def _share(self, work: dict[str, Work], together: int, description: str, progress: Any) -> None:
        """Do the runs that no other process has done or does, then wait for those of the others."""
        announced = False
        with Claims(self.folder / "claims") as claims:
            while work:
                chunks = _chunks((w for w in list(work.values()) if self._is_left(w, claims)), together)
                for chunk in _perform_in_processes(chunks, self.workers) if self.workers > 0 else _perform_here(chunks):
                    claims.release(self._strike(work, [cell.key for _, cell, *_ in chunk], progress))
                self._strike(work, [key for key in work if self._is_finished(work[key])], progress)
                owners = sorted({owner for key in work if (owner := claims.owner(key))})
                if owners and not announced:
                    print(f"{description}: waiting for runs of others, {len(work)}: {', '.join(owners)}.")
                    announced = True
                if work:
                    time.sleep(_POLL)

    def _strike(self, work: dict[str, Work], keys: list[str], progress: Any) -> list[str]:
        for key in keys:
            del work[key]
        progress.update(len(keys))
        return keys

    def _is_left(self, work: Work, claims: Claims) -> bool:
        """Claim a run that has no result yet and no other process works on."""
        key = work[1].key
        if self._is_finished(work) or not claims.take(key):
            return False
        if self._is_finished(work):  # between the look and the claim
            claims.release([key])
            return False
        return True

    def _is_finished(self, work: Work) -> bool:
        record = self._record(work[1].key)
        return record is not None and (self.keep_stale or not _changed(record["sources"], work[4]))

    def _path(self, key: str) -> Path:
        return self.folder / "runs" / f"{key}.json"

    def _record(self, key: str) -> dict[str, Any] | None:
        """What is kept of a finished run."""
        if not self._path(key).exists():
            return None
        record = json.loads(self._path(key).read_text(encoding="utf-8"))
        return record if all((self.folder / file).exists() for file in record["result"].get("files", ())) else None

    def _say(self, description: str, finished: int, total: int, stale: Mapping[str, set[str]]) -> None:
        if finished:
            print(f"{description}: {finished} of {total} runs are finished and not repeated.")
        if stale:
            changed = ", ".join(sorted(set().union(*stale.values())))
            outcome = "kept, as keep_stale asks" if self.keep_stale else "repeated; keep_stale would keep them"
            print(f"{description}: {len(stale)} of {total} runs are stale and {outcome}. Changed since: {changed}.")


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> set[str]:
    return {module for module in {*before, *now} if before.get(module) != now.get(module)}


def _chunks(work: Iterator[Work], size: int) -> Iterator[Sequence[Work]]:
    while chunk := list(islice(work, size)):
        yield chunk


def _perform(chunk: Sequence[Work]) -> None:
    for run, cell, folder, path, files in chunk:
        torch.set_num_threads(cell.threads)
        record = {"cell": asdict(cell), "sources": files, "result": run(cell, folder)}
        write_text(path, json.dumps(record, indent=2) + "\n")


def _perform_here(chunks: Iterable[Sequence[Work]]) -> Iterator[Sequence[Work]]:
    """Perform each chunk in this process, and yield it when it has ended."""
    for chunk in chunks:
        _perform(chunk)
        yield chunk


def _perform_in_processes(chunks: Iterator[Sequence[Work]], workers: int) -> Iterator[Sequence[Work]]:
    """Perform each chunk in a fresh process, and yield it when it has ended."""
    context = get_context("spawn")  # inherits neither memory nor threads
    running: dict[Any, tuple[Any, Sequence[Work]]] = {}
    try:
        while True:
            for chunk in islice(chunks, workers - len(running)):
                process = context.Process(target=_perform, args=(chunk,))
                process.start()
                running[process.sentinel] = process, chunk
            if not running:
                return
            for sentinel in wait(list(running)):
                process, chunk = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise RuntimeError(
                        f"A process terminated abruptly with exit code {process.exitcode} in one of the runs "
                        f"{[work[1] for work in chunk]}. If it raised an error, that is printed above. Finished runs "
                        "are kept: the same command runs only the others."
                    )
                yield chunk
    finally:
        for process, _ in running.values():
            process.terminate()


def separate_seeds(tuning_seeds: Sequence[int], seeds: Sequence[int]) -> None:
    """Refuse to report a seed that settings were chosen on.

    Raises:
        ValueError: If the seeds have one in common, or there are none of a kind.
    """
    if not seeds or not tuning_seeds or set(seeds) & set(tuning_seeds):
        raise ValueError(
            f"seeds and tuning_seeds must both be given and have none in common, but got {list(seeds)} and "
            f"{list(tuning_seeds)}."
        )


def select(kind: str, names: Sequence[str], known: Mapping[str, T], of: str = "") -> dict[str, T]:
    """What has one of some names, in the order that it is known in; all if there are no names.

    Raises:
        ValueError: If a name is unknown.

    Example:
        >>> select("methods", ["UCE"], {"ESD": 1, "UCE": 2})
        {'UCE': 2}
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"There are no {kind} {unknown}{of}. There are {list(known)}.")
    return {name: value for name, value in known.items() if not names or name in names}
