"""Conversations of the models of an audit, and how a judge rates them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_unlearn.audit.collect import Conditions
from lightning_unlearn.audit.data import AuditData
from lightning_unlearn.audit.measures import JSON, half_precision
from lightning_unlearn.audit.models import AuditedModel, model_hash
from lightning_unlearn.audit.parts import PartKey, Parts, code_hash
from lightning_unlearn.core.distributed import Replica, rank, world_size
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.dialogue.calibration import Calibration
from lightning_unlearn.dialogue.controls import Controls
from lightning_unlearn.dialogue.data.jsonl import read_jsonl
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.extractors import AnalysisExtractor, LogitExtractor, TextExtractor
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.probe import ProbeExtractor
from lightning_unlearn.dialogue.quality import (
    DialogueQuality,
    check_other_model,
    check_trusted,
    control_ratings,
    conversations,
    dialogue_quality,
    judging_on,
    rated,
    told,
)
from lightning_unlearn.dialogue.rating import RatesDialogues
from lightning_unlearn.dialogue.seeds import DialogueSeed, neutral_seeds, probe_seeds
from lightning_unlearn.dialogue.selectors.ranked import RankedSelector
from lightning_unlearn.dialogue.task import RatingTask
from lightning_unlearn.language.causal_lm import DType
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["ConversationJudge", "Conversations", "open_judge", "rated_conversations"]

_EXTRACTORS = (LogitExtractor, TextExtractor, AnalysisExtractor)
_PART = "dialogue"
_SEEDS = 16  # of the rows of each set


@dataclass(frozen=True)
class ConversationJudge:
    """A judge with its calibration, and how models talk for it.

    Args:
        judge: The judge.
        calibration: Its calibration, which must be trusted.
        max_new_tokens: Longest answer in tokens.
        seed: Seed of the controls.
    """

    judge: RatesDialogues
    calibration: Calibration
    max_new_tokens: int = 48
    seed: int = 0

    def settings(self) -> JSON:
        """All that a rating depends on."""
        return {"judge": _judge_settings(self.judge), "max_new_tokens": self.max_new_tokens, "seed": self.seed}


@dataclass(frozen=True)
class Conversations:
    """Rated conversations of all models.

    Args:
        seeds: What the user says.
        dialogues: By role of the model, the conversations; ``None`` in place of those whose texts are not kept.
        scores: By role, the judge's scores.
        quality: By role, but for the original, the quality beside that of the original.
        controls: Whether the judge tells known-bad controls.
        shown: By kind, the first control that is not about a row to forget, with its score.
        calibration: The judge's calibration.
        turns: Whether the models were asked several messages; one without a chat template takes only one.
    """

    seeds: list[DialogueSeed]
    dialogues: dict[str, list[Dialogue | None]]
    scores: dict[str, list[float]]
    quality: dict[str, DialogueQuality]
    controls: Controls
    shown: dict[str, tuple[str, float]]
    calibration: Calibration
    turns: bool = True


def open_judge(
    judge: RatesDialogues | str | os.PathLike[str] | None,
    calibration: Calibration | str | os.PathLike[str] | None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: DType = "float32",
) -> ConversationJudge | None:
    """The judge of an audit; ``None`` where there is none.

    Args:
        judge: The judge, or what `DialogueJudge` opens.
        calibration: Its calibration, the file of one, or rated dialogues (``.jsonl``), to which it is fitted here.
        seed: Seed of the controls.
        device: Where the judge reads the rated dialogues.
        dtype: Type of the weights of a judge that is opened here.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is a calibration without a judge, or the calibration is missing, not trusted or that of
            another judge.
    """
    if judge is None:
        if calibration is not None:
            raise ValueError("calibration is that of a judge, but there is no judge. Give judge=, or leave it out.")
        return None
    if calibration is None:
        check_trusted(None)
    if isinstance(calibration, (str, os.PathLike)) and not Path(calibration).is_file():
        raise FileNotFoundError(f"There is no calibration {calibration} (looked in {Path.cwd()}).")
    opened = DialogueJudge(judge, dtype=dtype) if isinstance(judge, (str, os.PathLike)) else judge
    with judging_on(opened, device):
        if isinstance(calibration, (str, os.PathLike)) and str(calibration).endswith(".jsonl"):
            return ConversationJudge(opened, check_trusted(_fitted(opened, calibration)), seed=seed)
        given = Calibration.load(calibration) if isinstance(calibration, (str, os.PathLike)) else calibration
        trusted = check_trusted(given)
        trusted.require_judge(opened)
    return ConversationJudge(opened, trusted, seed=seed)


def rated_conversations(
    asked: ConversationJudge,
    models: Sequence[AuditedModel],
    data: AuditData,
    conditions: Conditions,
    parts: Parts,
    prompt: PromptFormat | None,
    say: Callable[[str], None] = print,
) -> Conversations:
    """Let every model talk, one after the other, and have the conversations rated.

    Args:
        asked: The judge.
        models: The models, the original first.
        data: The rows that some of the seeds ask for.
        conditions: How the models are measured.
        parts: Finished parts.
        prompt: The prompt format of the audit, without tokenizer.
        say: Prints a line.

    Raises:
        ValueError: If the judge is one of the models.
    """
    seeds = neutral_seeds() + probe_seeds(data.retain, "retain", _SEEDS) + probe_seeds(data.forget, "forget", _SEEDS)
    settings = {
        **asked.settings(),
        "seeds": hashlib.sha256(json.dumps([asdict(s) for s in seeds if s.set == "neutral"]).encode()).hexdigest(),
        "precision": conditions.precision,
        "prompt": prompt.state_dict() if prompt is not None else None,
        "show_text": conditions.show_text,
    }
    code = code_hash(_measured, (type(asked.judge),))
    outcomes: dict[str, JSON] = {}
    for model in models:
        key = PartKey(model.identity, data.fingerprint(parts.secret), _PART, settings, code)
        if (found := parts.get(key)) is None:
            say(f"Conversations of the {model.role} model, {len(seeds)} of them, and their ratings")
            start = time.perf_counter()
            found = _measured(asked, model, seeds, conditions, prompt)
            found = {"seconds": time.perf_counter() - start, **found}
            parts.put(key, found)
        outcomes[model.role] = found
    return _conversations(asked, seeds, outcomes)


def _measured(
    asked: ConversationJudge,
    model: AuditedModel,
    seeds: Sequence[DialogueSeed],
    conditions: Conditions,
    prompt: PromptFormat | None,
) -> JSON:
    with model.opened(conditions.device, prompt) as module:
        check_other_model(asked.judge, module, model.role)
        chat = module._prompt_format().is_chat
        said = list(seeds) if chat else [seed.opening() for seed in seeds]
        with half_precision(module, conditions.precision), evaluating(module):
            dialogues = conversations(
                said,
                lambda messages: module.answer(messages, max_new_tokens=asked.max_new_tokens),
                Replica(rank(), world_size()),
            )
    with judging_on(asked.judge, conditions.device):
        scores = rated(asked.judge, dialogues)
        found: JSON = {"chat": chat, "scores": _numbers(scores), "controls": None, "shown": {}}
        if model.role == "original":
            _, made, ratings = control_ratings(asked.judge, dialogues, scores, asked.seed)
            found["controls"] = {
                kind: {"ids": [part.id for part in made[kind]], "scores": _numbers(ratings[kind])} for kind in made
            }
            found["shown"] = _first_shown(made, ratings)
    found["turns"] = [
        None if _secret(part) and not conditions.show_text else [[turn.role, turn.text] for turn in part.turns]
        for part in dialogues
    ]
    return found


def _first_shown(made: dict[str, list[Dialogue]], ratings: dict[str, list[float]]) -> JSON:
    """The first control of each kind that shows nothing of a row to forget."""
    shown: JSON = {}
    for kind, part in made.items():
        for dialogue, score in zip(part, ratings[kind], strict=True):
            if not _secret(dialogue) and kind not in shown:
                shown[kind] = [dialogue.text, None if math.isnan(score) else score]
    return shown


def _conversations(asked: ConversationJudge, seeds: list[DialogueSeed], outcomes: dict[str, JSON]) -> Conversations:
    scores = {role: [_number(score) for score in found["scores"]] for role, found in outcomes.items()}
    dialogues: dict[str, list[Dialogue | None]] = {
        role: [_dialogue(*row) for row in zip(seeds, found["turns"], strict=True)] for role, found in outcomes.items()
    }
    before = outcomes["original"]
    ids = {kind: part["ids"] for kind, part in before["controls"].items()}
    ratings = {kind: [_number(score) for score in part["scores"]] for kind, part in before["controls"].items()}
    forget = {seed.id for seed in seeds if seed.set == "forget"}
    controls = told(scores["original"], ratings, ids, forget)
    sets = [seed.set for seed in seeds]
    quality = {
        role: dialogue_quality(sets, scores["original"], part, asked.calibration, controls)
        for role, part in scores.items()
        if role != "original"
    }
    shown = {kind: (text, _number(score)) for kind, (text, score) in before["shown"].items()}
    return Conversations(seeds, dialogues, scores, quality, controls, shown, asked.calibration, before["chat"])


def _dialogue(seed: DialogueSeed, turns: list[tuple[Any, str]] | None) -> Dialogue | None:
    if turns is None:
        return None
    return Dialogue(seed.id, tuple(Turn(role, text) for role, text in turns), meta={"set": seed.set})


def _fitted(judge: RatesDialogues, path: str | os.PathLike[str]) -> Calibration:
    """A calibration to the rated dialogues of a file."""
    task = getattr(judge, "task", None)
    found = read_jsonl(path) if task is None else read_jsonl(path, task)
    dialogues = [dialogue for dialogue in found.dialogues if dialogue.ratings]
    scores = rated(judge, dialogues)
    pairs = [(s, d.mean) for s, d in zip(scores, dialogues, strict=True) if math.isfinite(s)]
    calibration = Calibration() if task is None else Calibration(task)
    extractor = getattr(judge, "extractor", None)
    knows_bad = isinstance(extractor, ProbeExtractor) and extractor.knows_bad
    floor = calibration.low if knows_bad else None
    return calibration.fit([score for score, _ in pairs], [human for _, human in pairs], floor, judge)


def _judge_settings(judge: Any) -> JSON:
    """All that a judge's ratings depend on, in values of JSON."""
    found = {
        "judge": _described(judge),
        "pool": hashlib.sha256(repr(getattr(judge, "pool", None)).encode()).hexdigest(),
    }
    for name in ("prompt", "extractor", "selector"):
        found[name] = _described(getattr(judge, name, None))
    if isinstance(judge, DialogueJudge):
        found |= {"weights": model_hash(judge.lm), "format": judge.prompt_format.state_dict()}
    return found


def _described(value: Any) -> Any:
    """Class and settings of an object; a function has its name."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _described(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(part) for part in value]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        simple = {key: part for key, part in vars(value).items() if isinstance(part, (str, int, float, bool))}
        return [name, {key: part for key, part in simple.items() if not key.startswith("_") and key != "training"}]
    parts = {key: part for key, part in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
    plain = (str, int, float, bool, tuple, Mapping, RatingTask, RankedSelector, *_EXTRACTORS)
    return [name, {key: _described(part) for key, part in parts.items() if isinstance(part, plain)}]


def _secret(dialogue: Dialogue) -> bool:
    return dialogue.meta.get("set") == "forget"


def _numbers(values: Sequence[float]) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [value if math.isfinite(value) else None for value in values]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
