"""Split of a labelled dataset into rows to forget and rows to retain, based only on labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_unlearn.core.checks import inside

__all__ = ["Split", "groups_of", "split_rows", "targets_of"]


class Split(NamedTuple):
    """Row numbers of the training set, ascending; each row is in exactly one part.

    Args:
        forget: Rows to forget, shape ``(F,)``.
        retain: All other rows, shape ``(R,)``.
    """

    forget: Tensor
    retain: Tensor


def targets_of(dataset: Any) -> Tensor:
    """The label of every row, without reading the rows, which might have to be decoded or augmented.

    Args:
        dataset: A dataset with ``targets`` or ``labels``, a ``TensorDataset`` whose last tensor holds the labels, a
            ``datasets.Dataset`` with a column ``label`` or ``labels``, or a ``Subset`` or ``ConcatDataset`` of these.

    Returns:
        Shape ``(N,)``, int64.

    Raises:
        TypeError: If the dataset has no such labels.
        ValueError: If the labels are not one integer per row.

    Example:
        >>> rows = TensorDataset(torch.zeros(4, 2), torch.tensor([3, 1, 4, 1]))
        >>> targets_of(Subset(Subset(rows, [3, 2, 1]), [0, 2]))
        tensor([1, 1])
    """
    targets = _labels(dataset, ("targets", "labels"), ("label", "labels"))
    if targets is None:
        raise TypeError(
            f"{type(dataset).__name__} has no labels that can be read without its rows. Give it an attribute `targets` "
            "with one integer a row."
        )
    return targets


def groups_of(dataset: Any) -> Tensor | None:
    """The fine label or attribute of every row, from the attribute or column ``groups``; ``None`` if there is none."""
    return _labels(dataset, ("groups",), ("groups",))


def split_rows(
    targets: Tensor,
    groups: Tensor | None = None,
    forget_class: int | Sequence[int] | None = None,
    forget_group: int | Sequence[int] | None = None,
    forget_share: float | None = None,
    forget_indices: Sequence[int] | None = None,
    stratified: bool = False,
    seed: int = 0,
) -> Split:
    """Choose the rows to forget: a class or a group, a random share of it or of all rows, or given rows.

    Args:
        targets: Label of each row, shape ``(N,)``.
        groups: Fine label of each row, shape ``(N,)``, for ``forget_group``.
        forget_class: Labels to forget.
        forget_group: Fine labels to forget.
        forget_share: Share of the rows to forget, in (0, 1): of the class or group if one is given, otherwise of all.
        forget_indices: The row numbers themselves, or a mask: a boolean for each row.
        stratified: Whether to draw the same share of each label.
        seed: Seed of the share.

    Returns:
        The split; all rows that are not to be forgotten are retained.

    Raises:
        ValueError: If the rows are not given in exactly one way, a label is unknown, a row number is out of range or
            repeated, or a part would be empty.

    Example:
        >>> split_rows(torch.tensor([0, 1, 1, 2]), forget_class=1)
        Split(forget=tensor([1, 2]), retain=tensor([0, 3]))
    """
    selectors = {"forget_class": forget_class, "forget_group": forget_group, "forget_indices": forget_indices}
    given = [name for name, value in selectors.items() if value is not None]
    if len(given) > 1 or (not given and forget_share is None) or (forget_indices is not None and forget_share):
        raise ValueError(
            "Give one of forget_class, forget_group and forget_indices, or forget_share, alone or with a class or a "
            f"group, but got {given + ['forget_share'] * (forget_share is not None)}."
        )
    if forget_indices is not None:
        chosen = _numbers(forget_indices, len(targets))
    else:
        chosen = torch.arange(len(targets))
        if forget_class is not None:
            chosen = _having("forget_class", targets, forget_class)
        elif forget_group is not None:
            if groups is None:
                raise ValueError("forget_group needs a dataset with an attribute `groups`, one integer a row.")
            chosen = _having("forget_group", groups, forget_group)
        if forget_share is not None:
            chosen = _drawn(chosen, targets, forget_share, stratified, seed)
    forgotten = torch.zeros(len(targets), dtype=torch.bool)
    forgotten[chosen] = True
    split = Split(*(side.nonzero()[:, 0] for side in (forgotten, ~forgotten)))
    for name, side in zip(Split._fields, split, strict=True):
        if len(side) == 0:
            raise ValueError(f"Of {len(targets)} rows, none would be in the {name} set. Choose other rows to forget.")
    return split


def _labels(dataset: Any, attributes: Sequence[str], columns: Sequence[str]) -> Tensor | None:
    if isinstance(dataset, Subset):
        whole = _labels(dataset.dataset, attributes, columns)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.long)]
    if isinstance(dataset, ConcatDataset):
        parts = [_labels(part, attributes, columns) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    values = next((v for name in attributes if (v := getattr(dataset, name, None)) is not None), None)
    if values is None and isinstance(dataset, TensorDataset) and "targets" in attributes:
        values = dataset.tensors[-1]
    if values is None and hasattr(dataset, "column_names"):
        column = next((name for name in columns if name in dataset.column_names), None)
        values = None if column is None else dataset.with_format(None)[column][:]
    if values is None:
        return None
    labels = torch.as_tensor(values)
    if labels.shape != (len(dataset),) or labels.is_floating_point():
        raise ValueError(
            f"{type(dataset).__name__} should have one integer label a row, but for {len(dataset)} rows they are "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    return labels.long()


def class_numbers(name: str, wanted: Any) -> list[int]:
    """Labels given as one number or several, of Python, NumPy or torch.

    Raises:
        ValueError: If they are not whole numbers.
    """
    given = torch.as_tensor(np.asarray(wanted))
    if given.dtype == torch.bool or given.is_floating_point() or given.is_complex() or given.dim() > 1:
        raise ValueError(
            f"{name} must be a label or a list of labels, which are whole numbers, but got {wanted!r}. Rows are chosen "
            "by forget_indices."
        )
    return given.reshape(-1).tolist()


def _having(name: str, labels: Tensor, wanted: Any) -> Tensor:
    wanted = class_numbers(name, wanted)
    known = labels.unique().tolist()
    unknown = sorted(set(wanted) - set(known))
    if unknown or not wanted:
        raise ValueError(f"{name}={wanted}, but the labels of the training rows are {known}.")
    return torch.isin(labels, torch.tensor(wanted)).nonzero()[:, 0]


def _drawn(rows: Tensor, targets: Tensor, share: float, stratified: bool, seed: int) -> Tensor:
    inside("forget_share", share, 0, 1)
    generator = torch.Generator().manual_seed(seed)
    parts = [rows[targets[rows] == label] for label in targets[rows].unique()] if stratified else [rows]
    return torch.cat([p[torch.randperm(len(p), generator=generator)[: round(share * len(p))]] for p in parts])


def _numbers(indices: Sequence[int], size: int) -> Tensor:
    given = torch.as_tensor(np.asarray(indices))
    if given.dtype == torch.bool:
        if given.shape != (size,):
            raise ValueError(
                f"forget_indices is a mask of shape {tuple(given.shape)}, but there are {size} rows. Give row numbers, "
                "or True or False for each row."
            )
        return given.nonzero()[:, 0]
    if given.numel() and (given.is_floating_point() or given.is_complex() or given.dim() != 1):
        kind = str(given.dtype).removeprefix("torch.")
        raise ValueError(f"forget_indices must be a list of row numbers, but is {kind} of shape {tuple(given.shape)}.")
    chosen = given.reshape(-1).long()
    if len(chosen) and (int(chosen.min()) < 0 or int(chosen.max()) >= size):
        raise ValueError(f"forget_indices must be in [0, {size}), but go from {chosen.min()} to {chosen.max()}.")
    if len(chosen.unique()) != len(chosen):
        raise ValueError(f"forget_indices has {len(chosen) - len(chosen.unique())} rows twice. Give each row once.")
    return chosen
