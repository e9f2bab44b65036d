"""Rows that an audit would count twice, or in two of its sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.language.chat import content_text
from lightning_unlearn.language.matching import plain_text
from lightning_unlearn.language.probes import Probe

__all__ = ["check_overlaps", "with_distinct_phrasings", "without_repeats"]


def without_repeats(probes: Sequence[Probe], name: str, source: str) -> list[Probe]:
    """The rows of a set without those that repeat an earlier one, whose answer would count as further evidence.

    Args:
        probes: The rows.
        name: Name of the set.
        source: Where the rows are from, for the warning.
    """
    first: dict[tuple[str, str], Probe] = {}
    for probe in probes:
        first.setdefault(_key(probe), probe)
    if repeats := len(probes) - len(first):
        rank_zero_warn(
            f"{repeats} of the {len(probes)} rows of the {name} set of {source} repeat the question and the answer of "
            "an earlier row. Each is asked once, since asking again shows nothing more."
        )
    return list(first.values())


def with_distinct_phrasings(probe: Probe) -> Probe:
    """The probe without phrasings that repeat its question or one another, which would count as further questions.

    Example:
        >>> probe = Probe(0, "Who?", "Ada.", paraphrased_questions=("who?", "By whom?", "By  whom?"))
        >>> with_distinct_phrasings(probe).paraphrased_questions
        ('By whom?',)
    """
    asked = probe.question if isinstance(probe.question, str) else content_text(probe.question[-1])
    distinct: dict[str, str] = {}
    for text in probe.paraphrased_questions:
        distinct.setdefault(plain_text(text), text)
    distinct.pop(plain_text(asked), None)
    return replace(probe, paraphrased_questions=tuple(distinct.values()))


def check_overlaps(sets: Mapping[str, Sequence[Probe]], source: str) -> None:
    """Refuse rows that are in two sets of which one says the opposite of the other.

    Args:
        sets: All sets by name, ``forget`` and ``retain`` among them.
        source: Where the rows are from, for messages.

    Raises:
        ValueError: If a row to forget is in another set, or a row that no model has seen is in one that models know.
    """
    others = [name for name in sets if name != "forget"]
    for name in others:
        if shared := _shared(sets[name], sets["forget"]):
            raise ValueError(
                f"{len(shared)} rows of the {name} set of {source} are in the forget set too, such as row "
                f"{shared[0].row}. The two are compared, so remove them from one."
            )
    for name in (name for name in others if name != "never_seen"):
        if shared := _shared(sets.get("never_seen", []), sets[name]):
            raise ValueError(
                f"{len(shared)} rows of the never_seen set of {source} are in the {name} set too, such as row "
                f"{shared[0].row}. No model may have seen them, so remove them from one."
            )
    for name in (name for name in others if name not in ("retain", "never_seen")):
        if shared := _shared(sets[name], sets["retain"]):
            rank_zero_warn(
                f"{len(shared)} rows of the {name} set of {source} are in the retain set too, such as row "
                f"{shared[0].row}. If the retain set is trained on, they show what was trained and not what else "
                "changed. Remove them from one."
            )


def _shared(probes: Sequence[Probe], others: Sequence[Probe]) -> list[Probe]:
    known = set(map(_key, others))
    return [probe for probe in probes if _key(probe) in known]


def _key(probe: Probe) -> tuple[str, str]:
    """What two rows have in common that differ in case, spaces and the encoding of accents alone."""
    question = probe.question if isinstance(probe.question, str) else _written(probe.question)
    return plain_text(question), plain_text(probe.answer)


def _written(messages: Sequence[Mapping[str, object]]) -> str:
    """A conversation as one text; a single message is written as the question alone is."""
    if len(messages) == 1:
        return content_text(messages[0])
    return json.dumps([[message.get("role"), content_text(message)] for message in messages], ensure_ascii=False)
