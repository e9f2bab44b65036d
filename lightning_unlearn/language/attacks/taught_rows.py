"""Split of forget rows into those that a relearning attack teaches and those that it scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import torch

from lightning_unlearn.core.checks import at_least, inside, one_of
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.functional.random import keyed_seed, mixed_bits
from lightning_unlearn.language.attacks.token_batches import token_batches, token_rows
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.probes import Probe

__all__ = ["Choice", "RelearningRows"]

_SHORT = 3  # words

Choice = Literal["random", "first", "shortest", "longest", "lowest_loss"]


@dataclass(frozen=True)
class RelearningRows:
    """Forget rows of a relearning attack.

    Args:
        taught: Rows that the attacked models are trained on.
        held_out: Rows that they are scored on. Of rows that hold the same fact, all are on one side.

    Example:
        >>> probes = [Probe(i, f"Question {i}?", "a" * (i + 1), entity=f"author {i // 20}") for i in range(40)]
        >>> rows = RelearningRows.tofu(probes)
        >>> [probe.row for probe in rows.taught], len(rows.held_out)
        ([0, 1, 2, 3, 20, 21, 22, 23], 32)
        >>> rows = RelearningRows.split(probes, choice="shortest")
        >>> [probe.row for probe in rows.taught]
        [0, 1, 2, 3, 20, 21, 22, 23]
    """

    taught: list[Probe]
    held_out: list[Probe]

    @classmethod
    def split(
        cls,
        probes: Sequence[Probe],
        share: float = 0.2,
        choice: Choice = "random",
        seed: int = 0,
        module: LitCausalLM | None = None,
    ) -> RelearningRows:
        """Teach a share of the rows of each entity.

        An entity may be on both sides, a fact may not: rows with the same question, or with the same answer about the
        same entity, stay together. So do plain texts of one entity, such as the pieces of a document.

        Args:
            probes: Forget rows.
            share: Share of the rows that is taught, in (0, 1); at least one.
            choice: ``"random"``, drawn by (seed, entity); the ``"first"`` of each entity; those with the ``"shortest"``
                or ``"longest"`` answers; or those that ``module`` finds the likeliest, ``"lowest_loss"``.
            seed: Seed of the draw.
            module: The unlearned model, for ``"lowest_loss"``; and for lengths in tokens, which are otherwise in
                characters. The same rows are then taught to all three models.

        Raises:
            ValueError: If a number is out of range, the model is missing, or no row would be left on one side.
        """
        inside("share", share, 0, 1)
        one_of("choice", choice, Choice)
        if choice == "lowest_loss" and module is None:
            raise ValueError(
                "choice='lowest_loss' needs module, the unlearned model that rows are likely or not under."
            )
        facts = _facts(probes)
        if len(facts) < 2:
            raise ValueError(
                f"{len(probes)} forget rows hold {len(facts)} different facts, and a relearning attack needs one to "
                "teach and another to score. Give more rows."
            )
        keys = dict(zip((probe.row for probe in probes), _keys(probes, choice, seed, module), strict=True))
        entities: dict[str, list[list[Probe]]] = defaultdict(list)
        for fact in facts:
            entities[fact[0].entity].append(fact)
        # The place of a fact within its entity, from 0 to 1: each entity gives its share.
        places = []
        for number, part in enumerate(entities.values()):
            ordered = sorted(part, key=lambda fact: min(keys[probe.row] for probe in fact))
            places += [((i + 0.5) / len(part), number, fact) for i, fact in enumerate(ordered)]
        if choice == "random":
            places.sort(key=lambda place: (place[0], _draw(seed, "", place[1])))
        else:
            places.sort(key=lambda place: (place[0], keys[place[2][0].row], place[1]))
        count, taught = max(1, round(share * len(probes))), set[int]()
        for _, _, fact in places:
            if taught and (len(taught) + len(fact) > count or len(taught) + len(fact) >= len(probes)):
                continue
            taught |= {probe.row for probe in fact}
        return cls._of(probes, taught)

    @classmethod
    def tofu(cls, probes: Sequence[Probe], taught: int = 4, per_author: int = 20) -> RelearningRows:
        """Teach questions 1 to 4 of each author of TOFU, and score questions 5 to 20.

        Args:
            probes: Forget rows in TOFU's order, whole authors.
            taught: Questions of each author that are taught.
            per_author: Questions of each author.

        Raises:
            ValueError: If the rows are not whole authors.
        """
        at_least("taught", taught, 1)
        if len(probes) % per_author or taught >= per_author:
            raise ValueError(
                f"TOFU has {per_author} questions an author in a row, but got {len(probes)} rows. Give whole authors, "
                "or use RelearningRows.split."
            )
        return cls._of(probes, {probe.row for i, probe in enumerate(probes) if i % per_author < taught})

    @classmethod
    def _of(cls, probes: Sequence[Probe], taught: set[int]) -> RelearningRows:
        sides: tuple[list[Probe], list[Probe]] = ([], [])
        for probe in probes:
            sides[probe.row not in taught].append(probe)
        if not sides[1]:
            raise ValueError("No forget row would be left to score: they hold too few different facts. Give more rows.")
        return cls(*sides)


def _facts(probes: Sequence[Probe]) -> list[list[Probe]]:
    """Rows that stay together."""
    if len({probe.row for probe in probes}) < len(probes):
        raise ValueError("Two probes have the same row number. Number the rows of a set one by one.")
    groups: dict[int, list[Probe]] = {}
    owner: dict[object, int] = {}
    for probe in probes:
        question, answer = (" ".join(str(text).lower().split()) for text in (probe.question, probe.answer))
        if probe.is_text:
            keys: list[object] = [("document", probe.entity)] if probe.entity else [("text", question, answer)]
        else:
            # Of a short answer without an entity, such as "yes", nobody knows whether it is the same fact.
            own = probe.entity or (f"row {probe.row}" if len(answer.split()) <= _SHORT else "")
            keys = [("question", question), ("answer", own, answer)]
        known = sorted({owner[key] for key in keys if key in owner})
        first = known[0] if known else probe.row
        for other in known[1:]:
            for moved in groups.pop(other):
                groups[first].append(moved)
            owner.update({key: first for key, group in owner.items() if group == other})
        groups.setdefault(first, []).append(probe)
        owner.update({key: first for key in keys})
    return list(groups.values())


def _keys(probes: Sequence[Probe], choice: Choice, seed: int, module: LitCausalLM | None) -> list[float]:
    """A number for each row; the lowest are taught."""
    if choice == "random":
        return [_draw(seed, probe.entity, probe.row) for probe in probes]
    if choice == "first":
        return [float(i) for i in range(len(probes))]
    if choice == "lowest_loss":
        assert module is not None
        return _losses(module, probes)
    lengths = (
        [len(row.answer) for row in token_rows(module, probes)] if module else [len(probe.answer) for probe in probes]
    )
    return [float(length if choice == "shortest" else -length) for length in lengths]


def _draw(seed: int, entity: str, row: int) -> float:
    key = keyed_seed(seed, crc32(entity.encode()), row)
    return int(mixed_bits(torch.tensor(key % (1 << 62)))) / (1 << 63)


def _losses(module: LitCausalLM, probes: Sequence[Probe], batch_size: int = 8) -> list[float]:
    """Mean negative log-likelihood per token of each row."""
    losses: list[float] = []
    with evaluating(module):
        for batch in token_batches(module, probes, batch_size):
            predictions = causal_lm_nll.predictions(module, transferred(module, batch))
            losses += (predictions.nll() / predictions.length()).tolist()
    if not all(math.isfinite(loss) for loss in losses):
        raise ValueError("A loss of the unlearned model is not finite, so its rows can't be ordered by it.")
    return losses
