"""Quality of a model's conversations beside those of the original model, as a judge rates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_unlearn.core.distributed import Replica, full_tensor, gather_objects, rank, world_size
from lightning_unlearn.core.intervals import Interval, bootstrap
from lightning_unlearn.dialogue.calibration import Calibration
from lightning_unlearn.dialogue.controls import Controls, control_dialogues, controls_of, refusal_dialogues
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.rating import RatesDialogues
from lightning_unlearn.dialogue.seeds import DialogueSeed, converse
from lightning_unlearn.language.chat import Messages

__all__ = [
    "DialogueQuality",
    "SetQuality",
    "check_other_model",
    "check_trusted",
    "control_ratings",
    "conversations",
    "dialogue_quality",
    "judging_on",
    "rated",
    "told",
]

KEPT = ("retain", "neutral")
"""Sets whose quality should not drop."""


class SetQuality(NamedTuple):
    """Quality of the conversations of a set.

    Args:
        before: Mean rating of the original model's conversations, on the scale of people.
        after: Mean rating of the model's own, with its interval; NaN as its ends where there is one conversation.
        difference: Mean of the paired differences, after minus before, likewise.
        raw_before: Mean score of the judge before calibration, original.
        raw_after: The same of the model.
        n: Conversations with both ratings.
        unrated: Conversations that lack one of the ratings.
    """

    before: float
    after: Interval
    difference: Interval
    raw_before: float
    raw_after: float
    n: int
    unrated: int = 0


@dataclass(frozen=True)
class DialogueQuality:
    """Quality of a model's conversations beside those of the original model.

    Args:
        sets: By set.
        drop: Mean rating lost on the sets to keep and the neutral one, with its interval; ``None`` without such sets.
        controls: Whether the judge rates known-bad dialogues low.
    """

    sets: Mapping[str, SetQuality] = field(default_factory=dict)
    drop: Interval | None = None
    controls: Controls = field(default_factory=lambda: Controls({}))

    @property
    def valid(self) -> bool:
        """Whether the judge has rated all kinds of controls low enough for its ratings to count."""
        return self.controls.valid

    def valid_for(self, name: str) -> bool:
        """Whether the ratings of a set are valid; for the forget set, refusals must also be rated above gibberish."""
        return self.valid and (name != "forget" or self.controls.refusals_valid)

    def metrics(self) -> dict[str, float]:
        """All numbers by name, for a logger."""
        found: dict[str, float] = {"valid": float(self.valid)}
        for name, part in self.sets.items():
            found |= {name: part.after.value, f"{name}_raw": part.raw_after}
            found |= _named(f"{name}_difference", part.difference)
        if self.drop is not None:
            found |= _named("drop", self.drop)
        found |= {f"auc_{kind}": area.value for kind, area in self.controls.auc.items()}
        if self.controls.refusals is not None:
            found |= {"auc_refusals": self.controls.refusals.value, "valid_forget": float(self.valid_for("forget"))}
        return found


def dialogue_quality(
    sets: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    calibration: Calibration,
    controls: Controls,
    level: float = 0.95,
) -> DialogueQuality:
    """Compare the ratings of two models' conversations on the same seeds.

    Args:
        sets: Set of each seed.
        before: Score of the original model's conversation of each seed; NaN where there is none.
        after: Score of the other model's.
        calibration: The judge's calibration.
        controls: Whether the judge tells known-bad dialogues.
        level: Level of the bootstrap intervals over seeds, in (0, 1).

    Raises:
        ValueError: If the calibration is not trusted, or the numbers of scores differ.
    """
    check_trusted(calibration)
    rows = list(zip(sets, before, after, strict=True))
    found = {
        name: _set_quality([row[1:] for row in rows if row[0] == name], calibration, level)
        for name in dict.fromkeys(sets)
    }
    kept = [row[1:] for row in rows if row[0] in KEPT]
    drop = None
    if kept:
        change = _set_quality(kept, calibration, level).difference
        drop = Interval(-change.value, -change.high, -change.low)
    return DialogueQuality(found, drop, controls)


def rated(judge: RatesDialogues, dialogues: Sequence[Dialogue]) -> list[float]:
    """The score of each dialogue; processes share them. A collective call.

    Raises:
        ValueError: If the judge gives another number of ratings.
    """
    own = list(dialogues)[rank() :: world_size()]
    ratings = judge.rate(own) if own else []
    if len(ratings) != len(own):
        raise ValueError(f"The judge gave {len(ratings)} ratings of {len(own)} dialogues. It must give one for each.")
    parts = gather_objects([float(rating.score) for rating in ratings])
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(dialogues))]


def conversations(
    seeds: Sequence[DialogueSeed], answer: Callable[[list[Messages]], Sequence[str]], share: Replica
) -> list[Dialogue]:
    """The conversations that a model makes of seeds, of which each process makes its share. A collective call.

    Args:
        seeds: The seeds.
        answer: Gives one answer to each list of messages.
        share: The share of this process.
    """
    by_replica = dict(gather_objects((share.rank, converse(seeds[share.rank :: share.total], answer))))
    return [by_replica[i % share.total][i // share.total] for i in range(len(seeds))]


@contextmanager
def judging_on(judge: Any, device: torch.device | str) -> Iterator[None]:
    """The judge on a device for a while: its memory there is free before and after."""
    if not isinstance(judge, nn.Module):
        yield
        return
    home = next(judge.parameters()).device
    judge.to(device)
    try:
        yield
    finally:
        judge.to(home)


def control_ratings(
    judge: RatesDialogues, dialogues: Sequence[Dialogue], scores: Sequence[float], seed: int = 0
) -> tuple[Controls, dict[str, list[Dialogue]], dict[str, list[float]]]:
    """Rate known-bad controls of dialogues. A collective call.

    Args:
        judge: The judge.
        dialogues: Conversations of the original model, with their set as ``meta["set"]``.
        scores: Their scores.
        seed: Seed of the controls.

    Returns:
        Whether the judge tells them from the originals; the controls by kind, with refusals to forget rows as
        ``"refusals"`` where there are such; and their scores.
    """
    made: dict[str, list[Dialogue]] = {str(kind): rows for kind, rows in control_dialogues(dialogues, seed).items()}
    asked = [dialogue for dialogue in dialogues if dialogue.meta.get("set") == "forget"]
    if asked:
        made["refusals"] = refusal_dialogues(asked)
    flat = rated(judge, [dialogue for part in made.values() for dialogue in part])
    found, start = {}, 0
    for kind, part in made.items():
        found[kind] = flat[start : start + len(part)]
        start += len(part)
    ids = {kind: [dialogue.id for dialogue in part] for kind, part in made.items()}
    return told(scores, found, ids, {dialogue.id for dialogue in asked}), made, found


def told(
    scores: Sequence[float], found: Mapping[str, Sequence[float]], ids: Mapping[str, Sequence[str]], forget: set[str]
) -> Controls:
    """AUC of originals over controls, and of refusals over repeated replies to the same rows to forget.

    Args:
        scores: Scores of the originals.
        found: By kind, scores of the controls and, where there are such, of ``"refusals"``.
        ids: By kind, names of their dialogues.
        forget: Names of the dialogues about rows to forget.
    """
    kinds = {kind: part for kind, part in found.items() if kind != "refusals"}
    if "refusals" not in found:
        return controls_of(scores, kinds)
    pairs = zip(ids["repeated"], found["repeated"], strict=True)
    return controls_of(scores, kinds, (found["refusals"], [score for name, score in pairs if name in forget]))


def check_trusted(calibration: Calibration | None) -> Calibration:
    """The calibration, if there is one and it is trusted.

    Raises:
        ValueError: If there is none, or the judge's scores were not shown to follow those of people.
    """
    if calibration is None:
        raise ValueError(
            "The judge has no calibration, so nobody knows what its scores mean. Fit a Calibration to dialogues that "
            "people have rated, and pass calibration=."
        )
    calibration.require_trust()
    return calibration


def check_other_model(judge: Any, module: nn.Module, role: str = "judged") -> None:
    """Refuse a judge that is the model that it is to judge: it prefers its own words.

    Args:
        judge: The judge.
        module: The model. Sharded weights are gathered, so that every process calls this.
        role: What the model is, for the message.

    Raises:
        ValueError: If the weights are the same ones or equal, in whatever precision, or the names are the same where
            the judge's weights are elsewhere.
    """
    weights = [part for part in (judge, getattr(judge, "lm", None)) if isinstance(part, nn.Module)]
    name = getattr(module, "hparams", {}).get("model")
    same = isinstance(name, str) and name == getattr(judge, "model", None)
    if weights:
        same = any(parameter is other for parameter, other in _pairs(weights[0], module))
        same = same or _signature(weights[0]) == _signature(module)
    if gather_objects(same)[0]:
        raise ValueError(
            f"The judge is the {role} model itself, which prefers its own words. Give another model as judge."
        )


def _pairs(judge: nn.Module, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The parameters that both have, as pairs."""
    own = {id(parameter): parameter for parameter in module.parameters()}
    return [(parameter, own[id(parameter)]) for parameter in judge.parameters() if id(parameter) in own]


@torch.no_grad()
def _signature(module: nn.Module) -> list[tuple[int, int]]:
    """Sizes of the parameters, and a number for their bits in bfloat16, whatever they are called."""
    found = []
    for parameter in module.parameters():
        values = full_tensor(parameter)
        if values.is_floating_point():
            bits = values.to(torch.bfloat16).contiguous().view(torch.int16)
            found.append((values.numel(), int(bits.sum(dtype=torch.int64))))
    return sorted(found)


def _set_quality(pairs: Sequence[tuple[float, float]], calibration: Calibration, level: float) -> SetQuality:
    whole = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if not whole:
        nothing = Interval(math.nan, math.nan, math.nan)
        return SetQuality(math.nan, nothing, nothing, math.nan, math.nan, 0, len(pairs))
    raw = torch.tensor(whole, dtype=torch.float64)
    before, after = calibration(raw).unbind(1)
    found, difference = bootstrap(torch.stack([after, after - before], dim=1), lambda rows: rows.mean(0), level)
    if len(whole) == 1:  # resamples of one conversation are all the same, which says nothing of other ones
        found, difference = (Interval(part.value, math.nan, math.nan) for part in (found, difference))
    raw_before, raw_after = raw.mean(0).tolist()
    return SetQuality(
        float(before.mean()),
        found,
        difference,
        raw_before,
        raw_after,
        len(whole),
        len(pairs) - len(whole),
    )


def _named(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
