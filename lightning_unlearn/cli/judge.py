"""Command ``judge``: ratings of a file of dialogues."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_unlearn.cli.judge_agreement import agreement, calibration_of, write_calibrated
from lightning_unlearn.core.checks import at_least, inside, one_of
from lightning_unlearn.core.files import write_text
from lightning_unlearn.dialogue.calibration import LEAST_DIALOGUES
from lightning_unlearn.dialogue.data.fed import FEDDialogues
from lightning_unlearn.dialogue.data.jsonl import JSONLDialogues
from lightning_unlearn.dialogue.data.module import DialogueDataModule
from lightning_unlearn.dialogue.data.usr import USRDialogues
from lightning_unlearn.dialogue.data.uss import USSDialogues
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.extractors import AnalysisExtractor, LogitExtractor, TextExtractor
from lightning_unlearn.dialogue.fingerprint import fingerprint_dialogues
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.probe import ProbeExtractor, saved_probe
from lightning_unlearn.dialogue.prompt import JudgePrompt, Mode
from lightning_unlearn.dialogue.rating import RatesDialogues
from lightning_unlearn.dialogue.rating_files import RatingFile, check_same_judge, files_digest, seen, without_nan
from lightning_unlearn.dialogue.remote import RemoteJudge
from lightning_unlearn.dialogue.selectors.bm25 import BM25Selector
from lightning_unlearn.dialogue.selectors.dense import DenseSelector
from lightning_unlearn.dialogue.selectors.random import RandomSelector
from lightning_unlearn.dialogue.selectors.selector import Selector
from lightning_unlearn.dialogue.selectors.state_encoder import StateEncoder
from lightning_unlearn.dialogue.task import task_of
from lightning_unlearn.language.causal_lm import DType

__all__ = ["judge"]

Format = Literal["jsonl", "uss", "fed", "usr"]
Examples = Literal["fixed", "random", "bm25", "dense"]
Route = Literal["logits", "text", "probe"]


def judge(
    model: str,
    data: str,
    format: Format = "jsonl",
    output_dir: str = "runs/judge",
    task: str | None = None,
    mode: Mode = "score_only",
    route: Route | None = None,
    pool: str | None = None,
    examples: Examples = "bm25",
    shots: int = 4,
    calibrate: str | None = None,
    level: float = 0.9,
    limit: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    max_length: int | None = None,
    example_length: int | None = None,
    dtype: DType = "float32",
    device: str | None = None,
    endpoint: str | None = None,
    known_bad: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Rate the dialogues of a file with a language model; measure agreement if people have rated them too.

    Writes ``ratings.jsonl``, one line per dialogue, during the rating: if the command was killed, the same command
    continues. Then writes ``summary.json`` with the judge's settings, the share of answers with a rating
    (``parse_rate``), the mean probability of all labels (``vocab_mass``), Spearman's correlation of scores and lengths
    (``length_bias``) and, if the dialogues have ratings, that of scores and ratings and similar measures, with 95 %
    intervals; with ``--calibrate`` also ``calibration.json``, and
    ``calibrated.jsonl`` with each score on people's scale and its interval. With ``--route probe``, it first fits a
    linear probe to the pool and saves this judge as the folder ``probe``, which ``--model`` and ``audit --judge`` open.

    Args:
        model: Hub id, folder, adapter folder or GGUF file; with --endpoint the name of a model there.
        data: The file of dialogues.
        format: "jsonl": one line per dialogue with messages as in OpenAI's chat format or ShareGPT's, such as
            {"messages": [{"role": "user", "content": "Hi"}], "ratings": [3, 4]}; or a file of "uss", "fed" or "usr". It
            also applies to the two other files.
        output_dir: Folder to write. Each judge and each file of dialogues needs its own.
        task: "satisfaction" (1 to 5), "fed_overall" (0 to 4) or "usr_overall" (1 to 5); by default that of the format.
        mode: What the judge writes: "score_only", "rating_first" or "analysis_first".
        route: Read the rating from the probabilities of the labels, "logits", from the judge's text, "text", or from
            its hidden states, "probe": by ridge regression, fitted to the pool. By default logits, and the probe if the
            model is the folder of one.
        pool: File of rated dialogues to take examples from, or to fit the probe to; without it there are no examples.
            It must not contain dialogues to rate.
        examples: Which examples each dialogue gets: the same for all, "random", or the most similar by "bm25" or by the
            judge's own states, "dense".
        shots: Number of examples in a prompt; none with a probe.
        calibrate: File of rated dialogues for the calibration, separate from those to rate and from the pool.
        level: Level of the intervals of calibrated scores.
        limit: Rate at most this many dialogues, from the beginning of the file.
        batch_size: Number of dialogues rated between two writes.
        max_new_tokens: Maximum length of the judge's text in tokens.
        max_length: Maximum length of a prompt in tokens, with a local model.
        example_length: Maximum length of an example in tokens, with a local model: a longer one loses its oldest turns
            but the first.
        dtype: Type of the weights.
        device: Device, such as cuda:1; by default a GPU if there is one.
        endpoint: Address of an OpenAI-compatible server, or "openai". Its key is read from the environment variable
            OPENAI_API_KEY.
        known_bad: With --route probe, also learn to tell known-bad versions of the pool's dialogues, which then get low
            ratings.
        seed: Seed of random examples and of intervals.

    Returns:
        The content of ``summary.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If files share dialogues, the folder contains ratings of another judge, or an argument is out of
            range; or if fewer than 8 dialogues of --calibrate have a rating of people, or get one of the judge.
    """
    one_of("format", format, Format)
    one_of("examples", examples, Examples)
    if route is not None:
        one_of("route", route, Route)
    inside("level", level, 0, 1)
    at_least("shots", shots, 0)
    task = task or {"fed": "fed_overall", "usr": "usr_overall"}.get(format, "satisfaction")
    at_least("batch_size", batch_size, 1)
    at_least("limit", 1 if limit is None else limit, 1)
    read = _read(data, format, task)
    rated = read.dialogues[:limit]
    if read.dropped_messages:
        print(f"Left out {read.dropped_messages} messages of {data}: system prompts, calls of tools and their results.")
    shown = _rated_part("pool", pool, format, task)
    held_out = _rated_part("calibrate", calibrate, format, task)
    for part in (*rated, *shown, *held_out):
        task_of(task).check_on_scale(part)
    if held_out:
        at_least("the number of rated dialogues in --calibrate", len(held_out), LEAST_DIALOGUES)
    _apart(data=rated, pool=shown, calibrate=held_out)
    saved = None if endpoint else saved_probe(model)
    route = route or ("probe" if saved else "logits")
    if saved and route == "probe":
        mode, max_length = saved.prompt.mode, saved.prompt.max_length
    by_examples = bool(shown) and route != "probe"
    settings = {
        "model": model, "endpoint": endpoint, "task": task, "mode": mode, "route": route, "max_length": max_length,
        "examples": examples if by_examples else None, "shots": shots if by_examples else 0,
        "max_new_tokens": max_new_tokens,
        "pool": seen(shown, ratings=True), "dtype": dtype, "seed": seed, "example_length": example_length,
        "model_files": None if endpoint else files_digest(model), "known_bad": known_bad,
    }  # fmt: skip
    _check_probe(settings, saved is not None, bool(shown))
    folder = Path(output_dir)
    check_same_judge(folder, settings, Path(data))
    maker = _Maker(settings, shown, device, folder)
    file = RatingFile(folder / "ratings.jsonl")
    file.check_of(read.dialogues)
    ratings = file.rate(maker, rated, batch_size)
    file.sort_as(read.dialogues)
    summary: dict[str, Any] = {"settings": settings, "dialogues": len(rated), **agreement(ratings, rated, task, seed)}
    write_text(folder / "summary.json", json.dumps(without_nan(summary), indent=2) + "\n")
    if held_out:
        known = RatingFile(folder / "calibration_ratings.jsonl").rate(maker, held_out, batch_size)
        own = RatingFile(folder / "fingerprint_ratings.jsonl").rate(maker, fingerprint_dialogues(), batch_size)
        knows_bad = known_bad or (route == "probe" and saved is not None and saved.probe.soundness is not None)
        fitted = calibration_of(folder, task, known, held_out, own, seed, knows_bad)
        write_calibrated(folder, fitted, ratings, rated, level)
        counted = sum(not math.isnan(rating.score) for rating in known)
        told = {"trusted": fitted.trusted, "spearman": fitted.spearman._asdict(), "dialogues": counted}
        summary["calibration"] = told
        write_text(folder / "summary.json", json.dumps(without_nan(summary), indent=2) + "\n")
    for name, value in summary.get("agreement", {}).items():
        print(f"{name}: {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
    print(f"Wrote {folder / 'ratings.jsonl'}")
    return summary


class _Maker:
    """Maker of the judge, which loads it only when needed: a finished run loads no model."""

    def __init__(self, settings: dict[str, Any], pool: Sequence[Dialogue], device: str | None, folder: Path) -> None:
        self.settings, self.pool, self.device, self.folder = settings, pool, device, folder
        self._judge: RatesDialogues | None = None

    def __call__(self) -> RatesDialogues:
        self._judge = self._judge or self._made()
        return self._judge

    def _made(self) -> RatesDialogues:
        s = self.settings
        prompt = JudgePrompt(s["task"], mode=s["mode"], max_length=s["max_length"], example_length=s["example_length"])
        text = TextExtractor(max_new_tokens=s["max_new_tokens"])
        if s["endpoint"] is not None:
            address = None if s["endpoint"] == "openai" else s["endpoint"]
            return RemoteJudge(
                s["model"], address, prompt=prompt, selector=self._selector(None), shots=s["shots"], pool=self.pool,
                extractor=text, logprobs=s["route"] == "logits", cache=self.folder / "replies.jsonl",
            )  # fmt: skip
        if s["route"] == "probe":
            return self._probing(prompt)
        read: Any = text if s["route"] == "text" else LogitExtractor()
        if s["route"] == "logits" and s["mode"] == "analysis_first":
            read = AnalysisExtractor(max_new_tokens=s["max_new_tokens"])
        made = DialogueJudge(s["model"], prompt=prompt, shots=s["shots"], extractor=read, dtype=s["dtype"])
        self._place(made)
        made.selector = self._selector(made)
        if self.pool:
            made.take_pool(self.pool)
        return made

    def _probing(self, prompt: JudgePrompt) -> DialogueJudge:
        """A judge that reads its ratings off a saved probe, or off one that is fitted to the pool and saved."""
        model, dtype = self.settings["model"], self.settings["dtype"]
        if not self.pool:
            return self._place(DialogueJudge(model, task=prompt.task, dtype=dtype))
        made = self._place(
            DialogueJudge(
                model, prompt=prompt, extractor=ProbeExtractor(known_bad=self.settings["known_bad"]), dtype=dtype
            )
        )
        print(f"Fitting the probe to {len(self.pool)} dialogues.")
        made.fit_probe(self.pool).save_probe(self.folder / "probe")
        print(f"Wrote {self.folder / 'probe'}")
        return made

    def _place(self, made: DialogueJudge) -> DialogueJudge:
        import torch

        return made.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _selector(self, made: DialogueJudge | None) -> Selector | None:
        kind = self.settings["examples"]
        if kind == "dense" and made is None:
            raise ValueError("examples='dense' reads the states of a local judge. Use 'bm25' or 'random' with it.")
        if kind == "dense" and made is not None:
            return DenseSelector(StateEncoder(made.lm))
        if kind == "random":
            return RandomSelector(self.settings["seed"])
        return BM25Selector() if kind == "bm25" else None


def _check_probe(settings: dict[str, Any], saved: bool, pool: bool) -> None:
    """Reject a probe that cannot be had."""
    if settings["known_bad"] and (settings["route"] != "probe" or saved):
        raise ValueError("--known_bad is learned by a probe while it is fitted: --route probe, with a --pool.")
    if settings["route"] != "probe":
        return
    if settings["endpoint"] is not None:
        raise ValueError("--route probe reads the hidden states of a local model. Leave --endpoint out.")
    if saved and pool:
        raise ValueError(
            "--model is the folder of a fitted probe, so --pool would have no use. Leave it out, or give the model "
            "itself to fit another probe."
        )
    if not saved and not pool:
        raise ValueError("--route probe is fitted to rated dialogues: give them as --pool.")


def _read(path: str, format: Format, task: str) -> DialogueDataModule:
    if format == "jsonl":
        return JSONLDialogues(path, task=task)
    return {"uss": USSDialogues, "fed": FEDDialogues, "usr": USRDialogues}[format](path)


def _rated_part(name: str, path: str | None, format: Format, task: str) -> list[Dialogue]:
    """The rated dialogues of a file that is there for its ratings."""
    if path is None:
        return []
    found = _read(path, format, task)
    if not found.rated:
        raise ValueError(
            f"--{name} needs dialogues with ratings, but none of the {len(found.dialogues)} in {path} has any. Each "
            'line needs "ratings", such as [3, 4], or one "rating".'
        )
    return found.rated


def _apart(**files: Sequence[Dialogue]) -> None:
    """Reject a dialogue that is in two files."""
    owners: dict[str, str] = {}
    for name, dialogues in files.items():
        for dialogue in dialogues:
            owner = owners.setdefault(seen([dialogue]), name)
            if owner != name:
                raise ValueError(
                    f"Dialogue {dialogue.id!r} of --{name} is also in --{owner}: the judge would be shown, or "
                    "calibrated to, what it is measured on. Give files that have none in common."
                )
