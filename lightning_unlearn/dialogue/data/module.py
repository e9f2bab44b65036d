"""Data module of rated dialogues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.lightning import LightningDataModule
from lightning_unlearn.dialogue.data.reading import RatedDialogues
from lightning_unlearn.dialogue.data.splitting import k_folds, split_dialogues
from lightning_unlearn.dialogue.dialogue import Dialogue

__all__ = ["DialogueDataModule", "Label"]

Label = Literal["mean", "majority"]


class DialogueDataModule(LightningDataModule):
    """Rated dialogues in batches that are lists of [`Dialogue`][lightning_unlearn.Dialogue].

    80 % of the conversations are to train on and take examples from, 10 % to validate and 10 % to test. The split
    depends on the seed and the names of the dialogues, and not on their order in the file. ``predict`` rates all
    dialogues, those without ratings too.

    Args:
        dialogues: The dialogues, or what a reader of files has found.
        label: What is to be predicted: the ``"mean"`` of the annotators' ratings, or the rating of the ``"majority"``,
            the lowest of several, which then takes the place of all ratings.
        batch_size: Dialogues in a batch.
        seed: Seed of the split and of shuffling.
        num_workers: Processes that load data.

    Raises:
        ValueError: If there are no dialogues, two have the same ``id``, or an option is out of range.

    Example:
        >>> from lightning_unlearn import Dialogue, Turn
        >>> rows = [Dialogue(str(i), (Turn("user", "Hi"),), (3, 4)) for i in range(10)]
        >>> data = DialogueDataModule(rows, batch_size=4)
        >>> len(data.pool), len(data.val), len(data.test), len(next(iter(data.train_dataloader())))
        (8, 1, 1, 4)
    """

    def __init__(
        self,
        dialogues: Sequence[Dialogue] | RatedDialogues,
        label: Label = "mean",
        batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.label: Label = one_of("label", label, Label)
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.seed, self.num_workers = seed, at_least("num_workers", num_workers, 0)
        read = dialogues if isinstance(dialogues, RatedDialogues) else RatedDialogues(list(dialogues))
        self.dropped_ratings = read.dropped_ratings
        """Ratings in the file that are no numbers, such as ``"N/A"``."""
        self.dropped_dialogues = read.dropped_dialogues
        """Dialogues in the file that are left out."""
        self.dropped_messages = read.dropped_messages
        """Messages in the file that neither user nor assistant says, such as system prompts."""
        self.dialogues = [self._labelled(dialogue) for dialogue in read.dialogues]
        """All dialogues, in the order of the file."""
        if not self.dialogues:
            raise ValueError("There are no dialogues. Check the file, or the options that choose from it.")
        name, count = Counter(dialogue.id for dialogue in self.dialogues).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} dialogues have the id {name!r}. Each must have its own, or leave ids out.")
        self.pool, self.val, self.test = split_dialogues(self.rated, seed)

    @property
    def rated(self) -> list[Dialogue]:
        """The dialogues with ratings."""
        return [dialogue for dialogue in self.dialogues if dialogue.ratings]

    def folds(self, k: int = 10) -> list[tuple[list[Dialogue], list[Dialogue]]]:
        """The training and test dialogues of each fold of a cross-validation over all that are rated.

        Args:
            k: Number of folds, at least 2.

        Raises:
            ValueError: If there are fewer conversations than folds.
        """
        rated = self.rated
        tests = [set(fold) for fold in k_folds(rated, k, self.seed)]
        return [
            (
                [dialogue for number, dialogue in enumerate(rated) if number not in test],
                [dialogue for number, dialogue in enumerate(rated) if number in test],
            )
            for test in tests
        ]

    def train_dataloader(self) -> DataLoader:
        return self._loader("to train on", self.pool, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("to validate", self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader("to test", self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader("to rate", self.dialogues)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch as it is: text has no device, and Lightning would copy each of its fields."""
        return batch

    def _loader(self, purpose: str, rows: list[Dialogue], shuffle: bool = False) -> DataLoader:
        if not rows:
            raise ValueError(
                f"There is no rated dialogue {purpose}: {len(self.rated)} of {len(self.dialogues)} have ratings."
            )
        return DataLoader(
            rows,  # type: ignore[arg-type]  # a list has what a map-style dataset needs
            batch_size=self.batch_size,
            shuffle=shuffle,
            collate_fn=list,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _labelled(self, dialogue: Dialogue) -> Dialogue:
        if self.label == "mean" or not dialogue.ratings:
            return dialogue
        return replace(dialogue, ratings=(dialogue.majority,))
