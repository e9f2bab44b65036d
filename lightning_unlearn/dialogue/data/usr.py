"""USR: responses to conversations of PersonaChat, of people and of three models, rated in six aspects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.dialogue.data.module import DialogueDataModule, Label
from lightning_unlearn.dialogue.data.reading import RatedDialogues, existing, numbers, read_json
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn

__all__ = ["USRAspect", "USRDialogues", "read_usr"]

USRAspect = Literal["Understandable", "Natural", "Maintains Context", "Engaging", "Uses Knowledge", "Overall"]

_SCALES: dict[str, tuple[float, float]] = {
    "Understandable": (0, 1),
    "Natural": (1, 3),
    "Maintains Context": (1, 3),
    "Engaging": (1, 3),
    "Uses Knowledge": (0, 1),
    "Overall": (1, 5),
}
_WHAT = "pc_usr_data.json of its authors, a list of {context, fact, responses}"


class USRDialogues(DialogueDataModule):
    """The responses of USR, with the ratings of three annotators.

    The last message of a context is the user's, and the response is the assistant's; before it the two take turns.

    Args:
        path: The authors' ``pc_usr_data.json``.
        aspect: What is rated.
        label: See [`DialogueDataModule`][lightning_unlearn.DialogueDataModule].
        batch_size: Responses in a batch.
        seed: Seed of the split and of shuffling. Responses to one context stay on one side.
        num_workers: Processes that load data.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another format, a rating is out of range, or there is no such aspect.

    References:
        Mehri and Eskenazi, *USR: An Unsupervised and Reference Free Evaluation Metric for Dialog Generation*,
        arXiv:2005.00456.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        aspect: USRAspect = "Overall",
        label: Label = "mean",
        batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        read = read_usr(path, aspect)
        super().__init__(read, label=label, batch_size=batch_size, seed=seed, num_workers=num_workers)


def read_usr(path: str | os.PathLike[str], aspect: USRAspect = "Overall") -> RatedDialogues:
    """The responses of USR.

    Args:
        path: The authors' ``pc_usr_data.json``.
        aspect: What is rated.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another format, a rating is out of range, or there is no such aspect.
    """
    one_of("aspect", aspect, USRAspect)
    path = existing(path, _WHAT)
    dialogues, dropped, unrated = [], 0, 0
    for number, item in enumerate(read_json(path, _WHAT)):
        where = f"{path}, item {number}"
        if not isinstance(item, Mapping) or not {"context", "responses"} <= set(item):
            raise ValueError(f"{where} must have a context and responses. The file must be {_WHAT}.")
        lines = item["context"].strip("\n").split("\n")
        turns = tuple(
            Turn("user" if (len(lines) - place) % 2 else "assistant", line) for place, line in enumerate(lines)
        )
        for choice, response in enumerate(item["responses"]):
            if not {"response", aspect} <= set(response):
                raise ValueError(f"{where}, response {choice} must have a response and ratings of {aspect!r}.")
            ratings, lost = numbers(response[aspect], *_SCALES[aspect], f"{where}, response {choice}")
            dropped += lost
            unrated += not ratings
            if ratings:
                meta = {"system": str(response.get("model", "")), "dialogue": f"usr-{number}"}
                text = response["response"].strip("\n")
                dialogues.append(Dialogue(f"usr-{number}-{choice}", turns, ratings, text, meta))
    if not dialogues:
        raise ValueError(f"{path} has no responses with ratings of {aspect!r}.")
    return RatedDialogues(dialogues, dropped, unrated)
