"""Data module that splits a labelled dataset into forget and retain rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_unlearn.classification.data.split import class_numbers, groups_of, split_rows, targets_of
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.pairing import ForgetRetainDataModule, Role

__all__ = ["ClassificationDataModule"]


class ClassificationDataModule(ForgetRetainDataModule):
    """Data module of a labelled dataset with a class, a group, a random share or given rows to forget.

    Validation and test measure up to four sets: ``forget`` and ``retain``, read from ``eval_train``; ``test``, without
    labels that have no retained rows, as in published test accuracies; and ``test_forget``, the test rows of the
    class or group to forget. A group is a part of a class whose other parts are retained, so even a retrained model
    classifies many of its rows correctly.

    Every checkpoint contains the row numbers, and a run can only be resumed with the same ones.

    Args:
        train: Training rows, ``(input, label)`` or dicts with ``labels``. Labels are read as described in
            [`targets_of`][lightning_unlearn.classification.data.split.targets_of].
        test: Rows that are not trained on.
        forget_class: Labels to forget.
        forget_group: Fine labels to forget, from the dataset's attribute ``groups``.
        forget_share: Share of all rows, or of the class or group, to forget; in (0, 1).
        forget_indices: Row numbers to forget, or a mask: a boolean for each row.
        stratified: Whether to draw the same share of each label.
        split_seed: Seed of the share.
        eval_train: The training rows with test-time transforms; by default ``train``, which must then not augment.
        batch_size: Forget rows per batch and process; at most the number of forget rows.
        retain_batch_size: Retain rows per batch and process; by default the same as ``batch_size``.
        eval_batch_size: Rows per validation and test batch.
        epoch: The role whose rows are read once per epoch.
        seed: Seed of shuffling and pairing.
        num_workers: Processes that load data.
        collate_fn: Makes a batch of a list of rows; by default torch's.

    Raises:
        ValueError: If the rows to forget are not given in exactly one way, or ``test`` or ``eval_train`` have different
            classes.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> rows = TensorDataset(torch.randn(6, 2), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> data = ClassificationDataModule(rows, test=rows, forget_class=1, batch_size=2)
        >>> {name: len(part) for name, part in data.eval_sets.items()}
        {'forget': 2, 'retain': 4, 'test': 4, 'test_forget': 2}
    """

    def __init__(
        self,
        train: Dataset,
        test: Dataset | None = None,
        forget_class: int | list[int] | None = None,
        forget_group: int | list[int] | None = None,
        forget_share: float | None = None,
        forget_indices: list[int] | None = None,
        stratified: bool = False,
        split_seed: int = 0,
        eval_train: Dataset | None = None,
        batch_size: int = 64,
        retain_batch_size: int | None = None,
        eval_batch_size: int = 256,
        epoch: Role = "forget",
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        targets, groups = targets_of(train), groups_of(train)
        self.split = split_rows(
            targets,
            groups,
            forget_class=forget_class,
            forget_group=forget_group,
            forget_share=forget_share,
            forget_indices=forget_indices,
            stratified=stratified,
            seed=split_seed,
        )
        forget, retain = (side.tolist() for side in self.split)
        if eval_train is not None and not torch.equal(targets_of(eval_train), targets):
            raise ValueError("eval_train must be the rows of train in the same order, but its labels differ.")
        classes = [list(names) for part in (train, test) if (names := getattr(part, "classes", None)) is not None]
        if len(classes) == 2 and classes[0] != classes[1]:
            raise ValueError(f"train has the classes {classes[0]}, but test has {classes[1]}.")
        # A larger batch would give one short batch per epoch, paired with too many retain rows.
        rows = min(batch_size, len(forget))
        super().__init__(
            forget=Subset(train, forget),
            retain=Subset(train, retain),
            heldout={} if test is None else self._tests(test, targets, forget_class, forget_group),
            batch_size=rows,
            retain_batch_size=retain_batch_size or rows,
            epoch=epoch,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collate_fn,
        )
        self.eval_batch_size = at_least("eval_batch_size", eval_batch_size, 1)
        self.eval_sets: dict[str, Any] = dict(self.sets)
        """The sets that validation and test measure."""
        if eval_train is not None:
            self.eval_sets |= {"forget": Subset(eval_train, forget), "retain": Subset(eval_train, retain)}

    def _tests(
        self,
        test: Dataset,
        targets: Tensor,
        forget_class: int | list[int] | None,
        forget_group: int | list[int] | None,
    ) -> dict[str, Dataset]:
        """Test rows of the retained labels, and of the class or group to forget."""
        labels, groups = targets_of(test), groups_of(test)
        gone = targets.unique()[~torch.isin(targets.unique(), targets[self.split.retain])]
        asked = torch.isin(labels, gone)
        if forget_class is not None:
            asked = torch.isin(labels, torch.tensor(class_numbers("forget_class", forget_class)))
        elif forget_group is not None and groups is not None:
            asked = torch.isin(groups, torch.tensor(class_numbers("forget_group", forget_group)))
        parts = {"test": ~torch.isin(labels, gone), "test_forget": asked}
        return {name: Subset(test, chosen.nonzero()[:, 0].tolist()) for name, chosen in parts.items() if chosen.any()}

    def set_loaders(self) -> dict[str, DataLoader]:
        """Loaders of all sets to measure, in order and with test-time transforms."""
        return {
            name: DataLoader(
                rows, batch_size=self.eval_batch_size, collate_fn=self.collate_fn, num_workers=self.num_workers
            )
            for name, rows in self.eval_sets.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The row numbers of both parts of the split."""
        return self.split._asdict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Refuse to resume with other rows.

        Raises:
            ValueError: If the rows of the checkpoint differ.
        """
        if not all(torch.equal(state_dict[name], rows) for name, rows in self.split._asdict().items()):
            raise ValueError(
                "The checkpoint is of a run that forgets other rows. Resume with the same dataset, forget_* arguments "
                "and split_seed, or pass forget_indices from the checkpoint."
            )
