"""Membership attacks with a classifier fitted to features of members and non-members."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, finite, one_of

__all__ = ["Attack", "Shadow", "check_attack", "check_features", "draw_shadow", "fit_attack"]

Attack = Literal["svc", "logistic"]
Shadow = Literal["random", "stratified", "first"]


def check_features(**sets: Tensor) -> None:
    """Refuse features that are no table of finite numbers, or of unequal widths.

    Args:
        **sets: By name the features of a set, shape ``(N,)`` or ``(N, D)``.

    Raises:
        ValueError: If a set is empty, a value is not finite or a shape is wrong.
    """
    for name, values in sets.items():
        if values.dim() not in (1, 2):
            raise ValueError(
                f"{name} must be of shape (N,), or (N, D) for D numbers a row, but got {tuple(values.shape)}."
            )
        finite(name, values)
    widths = {name: values.shape[1:] for name, values in sets.items()}
    if len(set(widths.values())) > 1:
        shapes = {name: tuple(values.shape) for name, values in sets.items()}
        raise ValueError(f"Every set needs equally many numbers a row, but got {shapes}. Take them off one model.")


def check_attack(attack: str, shadow: str = "random", max_shadow: int | None = None) -> None:
    """Refuse unknown options of an attack.

    Raises:
        ValueError: If one is unknown or out of range.
    """
    one_of("attack", attack, Attack)
    one_of("shadow", shadow, Shadow)
    if max_shadow is not None:
        at_least("max_shadow", max_shadow, 1)


def draw_shadow(
    members: Tensor,
    nonmembers: Tensor,
    member_labels: Tensor | None = None,
    nonmember_labels: Tensor | None = None,
    shadow: Shadow = "random",
    max_shadow: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Equally many members and non-members, which do not depend on the order of the rows unless ``shadow="first"``.

    Args:
        members: Features of members, shape ``(N,)`` or ``(N, D)``.
        nonmembers: The same of non-members.
        member_labels: Classes, for ``shadow="stratified"``.
        nonmember_labels: Classes, for ``shadow="stratified"``.
        shadow: ``"random"``, ``"stratified"`` by class, or ``"first"``.
        max_shadow: Largest number of rows on each side.
        seed: Seed of the draw, apart from the global random state.

    Returns:
        Two tables of fp64 numbers, shape ``(n, D)``.

    Raises:
        ValueError: If labels are missing, of another length, or have no class in common.
    """
    members, nonmembers = _table(members), _table(nonmembers)
    size = min(len(members), len(nonmembers))
    if shadow == "first":
        size = min(size, max_shadow or size)
        return members[:size], nonmembers[:size]
    generator = torch.Generator().manual_seed(seed)
    if shadow == "random":
        size = min(size, max_shadow or size)
        return _sample(members, size, generator), _sample(nonmembers, size, generator)
    if member_labels is None or nonmember_labels is None:
        raise ValueError("shadow='stratified' needs member_labels and nonmember_labels. Or use shadow='random'.")
    if len(member_labels) != len(members) or len(nonmember_labels) != len(nonmembers):
        raise ValueError(
            f"There are {len(members)} members with {len(member_labels)} labels and {len(nonmembers)} non-members with "
            f"{len(nonmember_labels)}. Pass one label a row."
        )
    member_labels, nonmember_labels = member_labels.cpu(), nonmember_labels.cpu()
    by_class: list[tuple[Tensor, Tensor]] = []
    for label in member_labels.unique():
        m, n = members[member_labels == label], nonmembers[nonmember_labels == label]
        size = min(len(m), len(n))
        by_class.append((_sample(m, size, generator), _sample(n, size, generator)))
    m, n = (torch.cat(side) for side in zip(*by_class, strict=True))
    if len(m) == 0:
        raise ValueError("Members and non-members have no class in common. Use shadow='random'.")
    chosen = torch.randperm(len(m), generator=generator)[:max_shadow]
    return m[chosen], n[chosen]


def _table(values: Tensor) -> Tensor:
    values = values.detach().cpu().double()
    return values[:, None] if values.dim() == 1 else values


def _sample(values: Tensor, size: int, generator: torch.Generator) -> Tensor:
    # Sorted first, so that the draw is the same however the rows were spread over processes.
    order = torch.arange(len(values))
    for column in reversed(values.unbind(1)):
        order = order[column[order].argsort(stable=True)]
    return values[order[torch.randperm(len(values), generator=generator)[:size]]]


def fit_attack(members: Tensor, nonmembers: Tensor, attack: Attack = "svc") -> Callable[[Tensor], Any]:
    """A classifier of members (1) and non-members (0).

    Args:
        members: Features, shape ``(n, D)``, as `draw_shadow` gives them.
        nonmembers: The same.
        attack: ``"svc"``: radial kernel, ``C=3``, ``gamma="auto"``; ``"logistic"``: balanced logistic regression.

    Returns:
        Features ``(N,)`` or ``(N, D)`` to predictions ``(N,)``.

    Raises:
        ImportError: If scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import SVC
    except ImportError:
        raise ImportError('Membership attacks need scikit-learn: pip install "lightning-unlearn[metrics]"') from None
    features = torch.cat([members, nonmembers])
    if (features == features[0]).all():
        warnings.warn(
            f"All members and non-members have the feature {features[0].tolist()}, so this attack can't tell them "
            "apart and its number means nothing. Use another feature, such as modified_entropy.",
            stacklevel=3,
        )
    classes = torch.cat([torch.ones(len(members)), torch.zeros(len(nonmembers))])
    model = SVC(C=3, kernel="rbf", gamma="auto") if attack == "svc" else LogisticRegression(class_weight="balanced")
    model.fit(features.numpy(), classes.numpy())
    return lambda values: model.predict(_table(values).numpy())
