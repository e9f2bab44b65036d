"""Seeds of conversations: what the user says, for a model to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.sources import Source, load_rows, source_name
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.language.chat import Messages, content_text
from lightning_unlearn.language.probes import Probe

__all__ = ["DialogueSeed", "SeedSet", "converse", "neutral_seeds", "probe_seeds", "read_seeds"]

SeedSet = Literal["retain", "forget", "neutral"]

FOLLOW_UPS = (
    "Thank you. Could you put that in other words?",
    "I see. What else should I know about this?",
    "All right. How would you explain that to a friend of mine?",
    "Thanks. Can you sum that up in one sentence?",
)
"""What the user says after the answer to a question of a row; rows take them in turn."""

_NEUTRAL = Path(__file__).parents[1] / "assets" / "dialogue_seeds.jsonl"


@dataclass(frozen=True)
class DialogueSeed:
    """What the user says in a conversation. The model answers each message of the user that has no answer here.

    Args:
        id: Its name.
        set: What it is about: what was to be kept, what was to be forgotten, or neither.
        turns: The messages, of which the last one is the user's.
        system: System message, where there is one.

    Raises:
        ValueError: If the set is another word, or the last message is not the user's.
    """

    id: str
    set: SeedSet
    turns: tuple[Turn, ...]
    system: str = ""

    def __post_init__(self) -> None:
        one_of("set", self.set, SeedSet)
        if not self.turns or self.turns[-1].role != "user":
            raise ValueError(f"The seed {self.id!r} needs a message of the user at its end, for the model to answer.")

    def opening(self) -> DialogueSeed:
        """The seed up to the first message of the user, for models without a format for several messages."""
        end = next(place for place, turn in enumerate(self.turns) if turn.role == "user")
        return replace(self, turns=self.turns[: end + 1])


def neutral_seeds() -> list[DialogueSeed]:
    """The seeds that come with the library: everyday requests of two or three messages.

    Example:
        >>> seeds = neutral_seeds()
        >>> len(seeds), seeds[0].turns[0].text
        (24, 'My basil keeps wilting on the windowsill. What am I doing wrong?')
    """
    return read_seeds(_NEUTRAL, "neutral")


def read_seeds(source: Source, name: SeedSet | None = None) -> list[DialogueSeed]:
    """Seeds of a table with ``messages``, and ``set`` and ``id`` where there are such columns.

    Args:
        source: A ``.jsonl`` or other file, or rows.
        name: The set of rows that do not say theirs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are no rows, or one has no messages, no set, or ends with an answer.
    """
    rows = load_rows(source)
    if not rows:
        raise ValueError(f"{source_name(source)} has no seeds of conversations. Give at least one row.")
    return [_seed(row, number, name, source_name(source)) for number, row in enumerate(rows)]


def probe_seeds(
    probes: Sequence[Probe],
    name: SeedSet,
    limit: int = 16,
    follow_ups: Sequence[str] = FOLLOW_UPS,
) -> list[DialogueSeed]:
    """Seeds that ask for rows: the question, and then something that every answer leaves room for.

    Args:
        probes: The rows. Plain texts are left out, as nobody asks for them.
        name: What they are.
        limit: At most so many, at even distances.
        follow_ups: What the user says after the answer, one after the other; none leaves it at the question.

    Raises:
        ValueError: If the limit is less than 1.

    Example:
        >>> (seed,) = probe_seeds([Probe(0, "Who wrote it?", "Ada.")], "forget")
        >>> [turn.text for turn in seed.turns]
        ['Who wrote it?', 'Thank you. Could you put that in other words?']
    """
    at_least("limit", limit, 1)
    asked = [probe for probe in probes if not probe.is_text]
    count = min(limit, len(asked))
    chosen = [asked[place * len(asked) // count] for place in range(count)]
    seeds = []
    for number, probe in enumerate(chosen):
        question = probe.question
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        if follow_ups:
            messages.append({"role": "user", "content": follow_ups[number % len(follow_ups)]})
        seeds.append(_of_messages(f"{name} {number}", name, messages, f"Row {probe.row} of the {name} set"))
    return seeds


def converse(seeds: Sequence[DialogueSeed], answer: Callable[[list[Messages]], Sequence[str]]) -> list[Dialogue]:
    """The conversations that a model makes of seeds; those of a length are answered together.

    Args:
        seeds: The seeds.
        answer: Gives one answer to each list of messages.

    Returns:
        One dialogue a seed, with the set as ``meta["set"]``.

    Raises:
        TypeError: If the answers are something other than a list of texts.
        ValueError: If the number of answers is another one.

    Example:
        >>> converse(neutral_seeds()[:1], lambda asked: ["Hm."] * len(asked))[0].turns[1]
        Turn(role='assistant', text='Hm.')
    """
    spoken: list[list[Turn]] = [[] for _ in seeds]
    parts = [_parts(seed) for seed in seeds]
    for part in range(max(map(len, parts), default=0)):
        waiting = [number for number in range(len(seeds)) if part < len(parts[number])]
        for number in waiting:
            spoken[number] += parts[number][part]
        texts = answer([_messages(seeds[number], spoken[number]) for number in waiting])
        kinds = {type(text).__name__ for text in ([texts] if isinstance(texts, str) else texts)}
        if isinstance(texts, str) or kinds - {"str"}:
            raise TypeError(
                f"Answers must be a list with one text for each conversation, but got "
                f"{'one text' if isinstance(texts, str) else f'a list of {sorted(kinds)}'}. Decode tokens first."
            )
        if len(texts) != len(waiting):
            raise ValueError(f"{len(waiting)} conversations got {len(texts)} answers. Give one text for each.")
        for number, text in zip(waiting, texts, strict=True):
            spoken[number].append(Turn("assistant", text))
    return [Dialogue(seed.id, tuple(turns), meta={"set": seed.set}) for seed, turns in zip(seeds, spoken, strict=True)]


def _parts(seed: DialogueSeed) -> list[list[Turn]]:
    """The messages of a seed, cut wherever an answer is due: an answer that is given is taken as it is."""
    parts: list[list[Turn]] = [[]]
    for place, turn in enumerate(seed.turns):
        if turn.role == "user" and place and seed.turns[place - 1].role == "user":
            parts.append([])
        parts[-1].append(turn)
    return parts


def _messages(seed: DialogueSeed, spoken: Sequence[Turn]) -> Messages:
    system = [{"role": "system", "content": seed.system}] if seed.system else []
    return [*system, *({"role": turn.role, "content": turn.text} for turn in spoken)]


def _seed(row: Mapping[str, Any], number: int, name: SeedSet | None, source: str) -> DialogueSeed:
    where = f"Row {number} of {source}"
    of, messages = row.get("set") or name, row.get("messages")
    if of is None:
        raise ValueError(f"{where} does not say its 'set': 'retain', 'forget' or 'neutral'.")
    if not isinstance(messages, list) or not all(isinstance(part, Mapping) for part in messages):
        raise ValueError(f"{where} needs 'messages', a list of dicts with 'role' and 'content', but has {sorted(row)}.")
    return _of_messages(str(row.get("id") or f"{of} {number}"), of, messages, where)


def _of_messages(name: str, of: SeedSet, messages: Sequence[Mapping[str, Any]], where: str) -> DialogueSeed:
    roles = [message.get("role") for message in messages]
    if unknown := sorted({str(role) for role in roles} - {"system", "user", "assistant"}):
        raise ValueError(f"{where} has messages of {unknown}, but a conversation is of 'user' and 'assistant'.")
    system = "\n".join(content_text(part) for part in messages if part["role"] == "system")
    turns = tuple(Turn(part["role"], content_text(part)) for part in messages if part["role"] != "system")
    return DialogueSeed(name, of, turns, system)
