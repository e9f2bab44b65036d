"""Command ``judge``: ratings of a file of dialogues."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.core.progress import counter
from lightning_unlearn.dialogue.calibration import Calibration
from lightning_unlearn.dialogue.data.fed import FEDDialogues
from lightning_unlearn.dialogue.data.jsonl import JSONLDialogues
from lightning_unlearn.dialogue.data.module import DialogueDataModule
from lightning_unlearn.dialogue.data.usr import USRDialogues
from lightning_unlearn.dialogue.data.uss import USSDialogues
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.extractors import AnalysisExtractor, LogitExtractor, TextExtractor
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.metrics.rating_metrics import RatingMetrics
from lightning_unlearn.dialogue.prompt import JudgePrompt, Mode
from lightning_unlearn.dialogue.rating import RatesDialogues, Rating
from lightning_unlearn.dialogue.remote import RemoteJudge
from lightning_unlearn.dialogue.selectors.bm25 import BM25Selector
from lightning_unlearn.dialogue.selectors.dense import DenseSelector
from lightning_unlearn.dialogue.selectors.random import RandomSelector
from lightning_unlearn.dialogue.selectors.selector import Selector
from lightning_unlearn.dialogue.selectors.state_encoder import StateEncoder
from lightning_unlearn.language.causal_lm import DType

__all__ = ["judge"]

Format = Literal["jsonl", "uss", "fed", "usr"]
Examples = Literal["fixed", "random", "bm25", "dense"]
Route = Literal["logits", "text"]


def judge(
    model: str,
    data: str,
    format: Format = "jsonl",
    output_dir: str = "runs/judge",
    task: str | None = None,
    mode: Mode = "score_only",
    route: Route = "logits",
    pool: str | None = None,
    examples: Examples = "bm25",
    shots: int = 4,
    calibrate: str | None = None,
    level: float = 0.9,
    limit: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    max_length: int | None = None,
    dtype: DType = "float32",
    device: str | None = None,
    endpoint: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Rate the dialogues of a file with a language model; measure agreement if people have rated them too.

    Writes ``ratings.jsonl``, one line per dialogue, during the rating: if the command was killed, the same command
    continues. Then writes ``summary.json`` with the judge's settings and, if the dialogues have ratings, Spearman's
    correlation and similar measures with 95 % intervals; with ``--calibrate`` also ``calibration.json``, and
    ``calibrated.jsonl`` with each score on people's scale and its interval.

    Args:
        model: Hub id, folder, adapter folder or GGUF file; with --endpoint the name of a model there.
        data: The file of dialogues.
        format: "jsonl": one line per dialogue, such as {"turns": [{"role": "user", "text": "Hi"}], "ratings": [3, 4]};
            or a file of "uss", "fed" or "usr". It also applies to the two other files.
        output_dir: Folder to write.
        task: "satisfaction" (1 to 5), "fed_overall" (0 to 4) or "usr_overall" (1 to 5); by default that of the format.
        mode: What the judge writes: "score_only", "rating_first" or "analysis_first".
        route: Read the rating from the probabilities of the labels, "logits", or from the judge's text, "text".
        pool: File of rated dialogues to take examples from; without it there are no examples. It must not contain
            dialogues to rate.
        examples: Which examples each dialogue gets: the same for all, "random", or the most similar by "bm25" or by the
            judge's own states, "dense".
        shots: Number of examples in a prompt.
        calibrate: File of rated dialogues for the calibration, separate from those to rate and from the pool.
        level: Level of the intervals of calibrated scores.
        limit: Rate at most this many dialogues, from the beginning of the file.
        batch_size: Number of dialogues rated between two writes.
        max_new_tokens: Maximum length of the judge's text in tokens.
        max_length: Maximum length of a prompt in tokens.
        dtype: Type of the weights.
        device: Device, such as cuda:1; by default a GPU if there is one.
        endpoint: Address of an OpenAI-compatible server, or "openai". Its key is read from the environment variable
            OPENAI_API_KEY.
        seed: Seed of random examples and of intervals.

    Returns:
        The content of ``summary.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If files share dialogues, the folder contains ratings of another judge, or an argument is out of
            range.
    """
    one_of("format", format, Format)
    task = task or {"fed": "fed_overall", "usr": "usr_overall"}.get(format, "satisfaction")
    at_least("batch_size", batch_size, 1)
    rated = _read(data, format, task).dialogues[:limit]
    shown = _read(pool, format, task).rated if pool else []
    held_out = _read(calibrate, format, task).rated if calibrate else []
    _apart(data=rated, pool=shown, calibrate=held_out)
    settings = {
        "model": model, "endpoint": endpoint, "task": task, "mode": mode, "route": route, "max_length": max_length,
        "examples": examples if shown else None, "shots": shots if shown else 0, "max_new_tokens": max_new_tokens,
        "pool": _digest(shown), "dtype": dtype, "seed": seed,
    }  # fmt: skip
    folder = Path(output_dir)
    _same_judge(folder, settings)
    maker = _Maker(settings, shown, device)
    ratings = _rated(maker, rated, folder / "ratings.jsonl", batch_size)
    summary: dict[str, Any] = {"settings": settings, "dialogues": len(rated), **_agreement(ratings, rated, task, seed)}
    if held_out:
        known = _rated(maker, held_out, folder / "calibration_ratings.jsonl", batch_size)
        summary["calibration"] = _calibrated(folder, task, known, held_out, ratings, rated, level, seed)
    write_text(folder / "summary.json", json.dumps(_without_nan(summary), indent=2) + "\n")
    for name, value in summary.get("agreement", {}).items():
        print(f"{name}: {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
    print(f"Wrote {folder / 'ratings.jsonl'}")
    return summary


class _Maker:
    """Maker of the judge, which loads it only when needed: a finished run loads no model."""

    def __init__(self, settings: dict[str, Any], pool: Sequence[Dialogue], device: str | None) -> None:
        self.settings, self.pool, self.device = settings, pool, device
        self._judge: RatesDialogues | None = None

    def __call__(self) -> RatesDialogues:
        self._judge = self._judge or self._made()
        return self._judge

    def _made(self) -> RatesDialogues:
        s = self.settings
        prompt = JudgePrompt(s["task"], mode=s["mode"], max_length=s["max_length"])
        text = TextExtractor(max_new_tokens=s["max_new_tokens"])
        if s["endpoint"] is not None:
            address = None if s["endpoint"] == "openai" else s["endpoint"]
            return RemoteJudge(
                s["model"], address, prompt=prompt, selector=self._selector(None), shots=s["shots"], pool=self.pool,
                extractor=text, logprobs=s["route"] == "logits",
            )  # fmt: skip
        read: Any = text if s["route"] == "text" else LogitExtractor()
        if s["route"] == "logits" and s["mode"] == "analysis_first":
            read = AnalysisExtractor(max_new_tokens=s["max_new_tokens"])
        made = DialogueJudge(s["model"], prompt=prompt, shots=s["shots"], extractor=read, dtype=s["dtype"])
        import torch

        made.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        made.selector = self._selector(made)
        if self.pool:
            made.take_pool(self.pool)
        return made

    def _selector(self, made: DialogueJudge | None) -> Selector | None:
        kind = self.settings["examples"]
        if kind == "dense" and made is None:
            raise ValueError("examples='dense' reads the states of a local judge. Use 'bm25' or 'random' with it.")
        if kind == "dense" and made is not None:
            return DenseSelector(StateEncoder(made.lm))
        if kind == "random":
            return RandomSelector(self.settings["seed"])
        return BM25Selector() if kind == "bm25" else None


def _read(path: str, format: Format, task: str) -> DialogueDataModule:
    if format == "jsonl":
        return JSONLDialogues(path, task=task)
    return {"uss": USSDialogues, "fed": FEDDialogues, "usr": USRDialogues}[format](path)


def _apart(**files: Sequence[Dialogue]) -> None:
    """Reject a dialogue that is in two files."""
    owners: dict[str, str] = {}
    for name, dialogues in files.items():
        for dialogue in dialogues:
            owner = owners.setdefault(_digest([dialogue]), name)
            if owner != name:
                raise ValueError(
                    f"Dialogue {dialogue.id!r} of --{name} is also in --{owner}: the judge would be shown, or "
                    "calibrated to, what it is measured on. Give files that have none in common."
                )


def _digest(dialogues: Sequence[Dialogue]) -> str:
    """A hash of the parts of dialogues that a judge sees."""
    texts = [[dialogue.text, *map(float, dialogue.ratings)] for dialogue in dialogues]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _same_judge(folder: Path, settings: dict[str, Any]) -> None:
    """Store the settings, and reject a folder with ratings made with other settings."""
    path = folder / "settings.json"
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != settings:
        changed = {name: (before.get(name), value) for name, value in settings.items() if before.get(name) != value}
        raise ValueError(
            f"{folder} holds ratings of a judge with other settings: {changed} (before, now). Give another "
            "--output_dir."
        )
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _rated(maker: _Maker, dialogues: Sequence[Dialogue], path: Path, batch_size: int) -> list[Rating]:
    """Ratings of dialogues; those already in the file are not computed again."""
    known = _known(path)
    keys = [f"{dialogue.id} {_digest([dialogue])}" for dialogue in dialogues]
    missing = [place for place, key in enumerate(keys) if key not in known]
    with counter("rated", len(keys), len(keys) - len(missing), "dialogue") as progress:
        for start in range(0, len(missing), batch_size):
            places = missing[start : start + batch_size]
            found = maker().rate([dialogues[place] for place in places])
            with path.open("a", encoding="utf-8") as file:
                for place, rating in zip(places, found, strict=True):
                    known[keys[place]] = rating
                    row = {"id": dialogues[place].id, "key": keys[place], **_without_nan(asdict(rating))}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            progress.update(len(places))
    return [known[key] for key in keys]


def _known(path: Path) -> dict[str, Rating]:
    """The ratings in a file; a last line that was cut off by a kill is removed."""
    if not path.exists():
        return {}
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        write_text(path, f"{whole}\n" if whole else "")
    found = {}
    for line in filter(None, whole.split("\n")):
        row = json.loads(line)
        key, probs = row.pop("key"), row.pop("probs")
        del row["id"]
        row["score"] = math.nan if row["score"] is None else row["score"]
        found[key] = Rating(**row, probs=None if probs is None else tuple(probs))
    return found


def _agreement(ratings: Sequence[Rating], dialogues: Sequence[Dialogue], task: str, seed: int) -> dict[str, Any]:
    pairs = [(rating, part) for rating, part in zip(ratings, dialogues, strict=True) if part.ratings]
    summary: dict[str, Any] = {"parse_rate": sum(rating.parsed for rating in ratings) / max(1, len(ratings))}
    if len([1 for rating, _ in pairs if not math.isnan(rating.score)]) < 3:
        return summary
    metrics = RatingMetrics(task)
    metrics.update([rating for rating, _ in pairs], [part for _, part in pairs])
    found: dict[str, Interval] = metrics.intervals(seed=seed)
    return {**summary, "agreement": {name: value._asdict() for name, value in found.items()}}


def _calibrated(
    folder: Path,
    task: str,
    known: Sequence[Rating],
    held_out: Sequence[Dialogue],
    ratings: Sequence[Rating],
    rated: Sequence[Dialogue],
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Calibrate to the held-out dialogues, and write the calibrated scores of the others."""
    pairs = [(rating.score, part.mean) for rating, part in zip(known, held_out, strict=True)]
    used = [(score, mean) for score, mean in pairs if not math.isnan(score)]
    calibration = Calibration(task, seed=seed).fit([score for score, _ in used], [mean for _, mean in used])
    calibration.save(folder / "calibration.json")
    rows = []
    for rating, part in zip(ratings, rated, strict=True):
        there = not math.isnan(rating.score)
        interval = calibration.interval(rating.score, level) if there else Interval(math.nan, math.nan, math.nan)
        rows.append({"id": part.id, **_without_nan(interval._asdict())})
    write_text(folder / "calibrated.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if not calibration.trusted:
        print("The judge's scores do not agree with people's ratings: their correlation's interval is not above 0.")
    return {"trusted": calibration.trusted, "spearman": calibration.spearman._asdict(), "dialogues": len(used)}


def _without_nan(value: Any) -> Any:
    """The value with NaN replaced by ``None``, which JSON writes as ``null``."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
