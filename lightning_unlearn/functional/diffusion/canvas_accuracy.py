"""Accuracies of UnlearnCanvas: UA, IRA and CRA, style-object pairs, sequential erasure, and redirection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ErasureAccuracies",
    "PairAccuracies",
    "canvas_accuracies",
    "concept_accuracies",
    "erasure_accuracies",
    "pair_accuracies",
    "pair_quadrants",
    "rebound",
    "redirect_entropy",
    "retained_accuracy",
]


class ErasureAccuracies(NamedTuple):
    """Accuracies of a model from which one style or object was erased, in [0, 1]."""

    ua: Tensor
    """Unlearning accuracy: share of the target's images that do not show it."""

    ira: Tensor
    """In-domain retain accuracy: on the other concepts of the target's kind."""

    cra: Tensor
    """Cross-domain retain accuracy: on the concepts of the other kind."""


class PairAccuracies(NamedTuple):
    """Accuracies of a model from which one style-object pair was erased, in [0, 1]."""

    ua: Tensor
    """Unlearning accuracy: share of the pair's images that are not right."""

    sc: Tensor
    """Style consistency: on the style with other objects."""

    oc: Tensor
    """Object consistency: on the object in other styles."""

    up: Tensor
    """Unrelated prompts: on other objects in other styles."""


def concept_accuracies(hits: Tensor, n: Tensor, kind: Literal["style", "object"]) -> Tensor:
    r"""Accuracy on each style, $a_S(s)$, or on each object, $a_O(o)$.

    $$a_S(s) = \frac{\sum_o h_{so}}{\sum_o n_{so}}, \qquad a_O(o) = \frac{\sum_s h_{so}}{\sum_s n_{so}}$$

    Args:
        hits: Number of images $h$ that the judge of this kind classifies correctly, for each style and object, shape
            ``(S, O)``.
        n: Number of images, of the same shape.
        kind: Whether to compute accuracies of styles or of objects.

    Returns:
        Shape ``(S,)`` or ``(O,)``, fp64.

    Raises:
        ValueError: If a concept has no image.
    """
    axis = 1 if kind == "style" else 0
    images = n.sum(axis)
    if not bool((images > 0).all()):
        empty = (images == 0).nonzero().flatten().tolist()
        raise ValueError(f"The accuracy on {kind}s {empty} is undefined: there is no image of them to count.")
    return hits.sum(axis).double() / images


def erasure_accuracies(own: Tensor, other: Tensor, target: int) -> ErasureAccuracies:
    r"""UA, IRA and CRA from the accuracies on all concepts.

    $$\mathrm{UA} = 1 - a(c^*), \qquad \mathrm{IRA} = \frac{1}{K-1} \sum_{c \ne c^*} a(c), \qquad
    \mathrm{CRA} = \frac{1}{L} \sum_d a'(d)$$

    Args:
        own: Accuracies $a$ on the concepts of the target's kind, shape ``(K,)``.
        other: Accuracies $a'$ on the concepts of the other kind, shape ``(L,)``.
        target: Index of the target $c^*$ in ``own``.

    Raises:
        ValueError: If there is no other concept of the target's kind.

    Example:
        >>> ua, ira, cra = erasure_accuracies(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 0.5]), target=0)
        >>> float(ua), float(ira), float(cra)
        (0.5, 1.0, 0.75)

    References:
        Zhang et al., *UnlearnCanvas*, arXiv:2402.11846.
    """
    if len(own) < 2:
        raise ValueError("IRA is the accuracy on the other concepts of the target's kind, but there is none.")
    others = torch.cat([own[:target], own[target + 1 :]])
    return ErasureAccuracies(1 - own[target], others.mean(), other.mean())


def canvas_accuracies(
    style_hits: Tensor,
    object_hits: Tensor,
    n: Tensor,
    kind: Literal["style", "object"],
    target: int,
    include_target: bool = True,
) -> ErasureAccuracies:
    """UA, IRA and CRA from counts of correctly classified images.

    Args:
        style_hits: Number of images with the correct style, for each requested style and object, shape ``(S, O)``.
        object_hits: Number of images with the correct object, of the same shape.
        n: Number of images, of the same shape.
        kind: Kind of the target.
        target: Its index among the styles or objects.
        include_target: Whether CRA counts the images for which the target was requested, as the published code does.

    Raises:
        ValueError: If a concept has no image, or there is no other concept of the target's kind.

    Example:
        >>> style = torch.tensor([[0, 1], [1, 1]])
        >>> object = torch.tensor([[1, 0], [1, 1]])
        >>> n = torch.ones(2, 2, dtype=torch.long)
        >>> [float(x) for x in canvas_accuracies(style, object, n, "style", 0)]
        [0.5, 1.0, 0.75]
        >>> float(canvas_accuracies(style, object, n, "style", 0, include_target=False).cra)
        1.0
    """
    hits, cross, across = (style_hits, object_hits, "object") if kind == "style" else (object_hits, style_hits, "style")
    counts = torch.ones_like(n)
    if not include_target:
        counts.select(0 if kind == "style" else 1, target).zero_()
    other = concept_accuracies(cross * counts, n * counts, across)  # type: ignore[arg-type]
    return erasure_accuracies(concept_accuracies(hits, n, kind), other, target)


def pair_accuracies(hits: Tensor, n: Tensor, style: int, object: int) -> PairAccuracies:
    r"""UA, SC, OC and UP of a pair, from counts of correctly classified images.

    With the share $b(s, o)$ of correct images of a style and an object, and the target $(s^*, o^*)$:

    $$\mathrm{UA} = 1 - b(s^*, o^*), \quad \mathrm{SC} = \operatorname*{mean}_{o \ne o^*} b(s^*, o), \quad
    \mathrm{OC} = \operatorname*{mean}_{s \ne s^*} b(s, o^*), \quad
    \mathrm{UP} = \operatorname*{mean}_{s \ne s^*, o \ne o^*} b(s, o)$$

    Args:
        hits: Number of correct images, shape ``(S, O)``.
        n: Number of images, of the same shape; the pair may have more than the others.
        style: Index $s^*$ of the style.
        object: Index $o^*$ of the object.

    Raises:
        ValueError: If a pair has no image, or there is only one style or one object.

    Example:
        >>> hits, n = torch.tensor([[0, 0], [1, 1]]), torch.ones(2, 2)
        >>> [float(x) for x in pair_accuracies(hits, n, style=0, object=0)]
        [1.0, 0.0, 1.0, 1.0]

    References:
        Zhang et al., *UnlearnCanvas*, arXiv:2402.11846. It does not define when an image is correct.
    """
    quadrants = pair_quadrants(n.shape[0], n.shape[1], style, object)
    if empty := (n == 0).nonzero().tolist():
        raise ValueError(f"There is no image of the styles and objects {empty}.")
    right = hits.double() / n
    wrong, *kept = (right[cells].mean() for cells in quadrants)
    return PairAccuracies(1 - wrong, *kept)


def pair_quadrants(styles: int, objects: int, style: int, object: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks of the style-object grid over which UA, SC, OC and UP of a pair are measured.

    Args:
        styles: Number of styles, at least 2.
        objects: Number of objects, at least 2.
        style: Index of the style of the pair.
        object: Index of its object.

    Returns:
        The pair, the style with other objects, the object in other styles, and the rest, each boolean of shape
        ``(S, O)``.

    Raises:
        ValueError: If there is only one style or one object.
    """
    if min(styles, objects) < 2:
        raise ValueError(f"A pair is compared with others, but there are {styles} styles and {objects} objects.")
    row, column = (torch.arange(styles) == style)[:, None], (torch.arange(objects) == object)[None]
    return row & column, row & ~column, ~row & column, ~row & ~column


def retained_accuracy(
    style_hits: Tensor,
    object_hits: Tensor,
    n: Tensor,
    styles: Sequence[int] = (),
    objects: Sequence[int] = (),
    include_target: bool = True,
) -> Tensor:
    r"""Retain accuracy on the concepts whose erasure has not been requested yet.

    $$\mathrm{RA} =
    \tfrac12 \operatorname*{mean}_{s \notin T} a_S(s) + \tfrac12 \operatorname*{mean}_{o \notin T} a_O(o)$$

    This is $\tfrac12(\mathrm{IRA} + \mathrm{CRA})$ if all requests $T$ are of one kind.

    Args:
        style_hits: Number of images with the correct style, shape ``(S, O)``.
        object_hits: Number of images with the correct object, of the same shape.
        n: Number of images, of the same shape.
        styles: Indices of the styles whose erasure was requested.
        objects: Indices of the objects whose erasure was requested.
        include_target: Whether images of a prompt with an erased concept count for the other concepts.

    Returns:
        Scalar, fp64, in [0, 1].

    Raises:
        ValueError: If no concept is left, or a concept has no image.
    """
    kept_styles = [s for s in range(n.shape[0]) if s not in set(styles)]
    kept_objects = [o for o in range(n.shape[1]) if o not in set(objects)]
    if not kept_styles or not kept_objects:
        raise ValueError("All styles or all objects were requested to be erased, so no retain accuracy is left.")
    for_styles, for_objects = (slice(None), slice(None)) if include_target else (kept_objects, kept_styles)
    style = concept_accuracies(style_hits[kept_styles][:, for_styles], n[kept_styles][:, for_styles], "style")
    object = concept_accuracies(object_hits[for_objects][:, kept_objects], n[for_objects][:, kept_objects], "object")
    return (style.mean() + object.mean()) / 2


def rebound(ua: Tensor) -> Tensor:
    r"""Rebound of each target: how far it has come back at the end of a sequence of erasures.

    $$\mathrm{rebound}_i = \max_{j \ge i} U_{ij} - U_{iN}$$

    Args:
        ua: Unlearning accuracy $U_{ij}$ of target $i$ after step $j$, shape ``(N, N)``; entries below the diagonal are
            ignored.

    Returns:
        Shape ``(N,)``, at least 0.

    Raises:
        ValueError: If the shape is not square.

    Example:
        >>> rebound(torch.tensor([[0.9, 0.8, 0.5], [0.0, 0.9, 0.9], [0.0, 0.0, 0.9]]))
        tensor([0.4000, 0.0000, 0.0000])
    """
    if ua.dim() != 2 or ua.shape[0] != ua.shape[1]:
        raise ValueError(f"There must be an unlearning accuracy for each target and step, but got {tuple(ua.shape)}.")
    below = torch.ones_like(ua, dtype=torch.bool).tril(-1)
    return ua.masked_fill(below, -math.inf).amax(1) - ua[:, -1]


def redirect_entropy(counts: Tensor, target: int) -> Tensor:
    r"""Spread of a target's images over the other labels: 0 if all get the same label, 1 if all labels are equal.

    $$-\frac{1}{\log(K - 1)} \sum_{k \ne c^*} p_k \log p_k, \qquad p_k = \frac{n_k}{\sum_{j \ne c^*} n_j}$$

    Args:
        counts: Number $n_k$ of the target's images that are classified as each label, shape ``(K,)``.
        target: Label $c^*$ of the target, which is excluded.

    Returns:
        Scalar, fp64; NaN if no image gets another label.

    Raises:
        ValueError: If there are fewer than two other labels.

    Example:
        >>> redirect_entropy(torch.tensor([0, 6, 2, 2, 0, 0]), target=0)
        tensor(0.5904, dtype=torch.float64)
    """
    if len(counts) < 3:
        raise ValueError(f"Redirection needs two labels beside the target's, but there are {len(counts)} in all.")
    others = torch.cat([counts[:target], counts[target + 1 :]]).double()
    return torch.special.entr(others / others.sum()).sum() / math.log(len(others))
