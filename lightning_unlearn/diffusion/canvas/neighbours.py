"""Nearest and furthest concepts to a concept, by what the UNet's cross-attention reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, shape
from lightning_unlearn.diffusion.engine.model import as_text_to_image
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.text import encode, tokenize

__all__ = [
    "Neighbours",
    "concept_similarities",
    "mask_overlaps",
    "miniature_prompts",
    "ranked_neighbours",
    "read_neighbours",
]


@dataclass(frozen=True)
class Neighbours:
    """Concepts that are near to a concept, and concepts that are far from it.

    Args:
        near: Near concepts, the nearest first.
        far: Far concepts, the furthest last.
        anchor: The concept that replaces it. It is in neither list, because erasure makes the model draw more of it.
    """

    near: tuple[str, ...]
    far: tuple[str, ...]
    anchor: str | None = None


def concept_similarities(module: nn.Module, prompts: Mapping[str, Sequence[str]]) -> Tensor:
    r"""Cosine similarities of concepts as the cross-attention reads them.

    With text states $c_{ijl}$ of prompt $j$ of concept $i$ at position $l$, a concept's vector is
    $x_i = \frac{1}{n_i} \sum_j (W c_{ij1}, ..., W c_{ijL})$ under all key and value layers $W$. The vectors that are
    compared are $x_i - \bar x$, with the mean $\bar x$ over the concepts. What all prompts have in common dominates the
    raw states, so without this step all concepts look alike.

    Args:
        module: The model before erasure, with the parts of
            [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage].
        prompts: Prompts of each concept of one kind, which differ only in the concept's name.

    Returns:
        Shape ``(N, N)``, in [-1, 1], fp64, in the order of ``prompts``.

    Raises:
        ValueError: If there are fewer than two concepts, or one has no prompt.
    """
    bare = [name for name, texts in prompts.items() if not texts]
    if len(prompts) < 2 or bare:
        raise ValueError(f"Concepts are compared by their prompts, of two concepts or more, but got {dict(prompts)}.")
    model = as_text_to_image(module)
    with evaluating(module), torch.no_grad(), torch.autocast(model.unet.device.type, enabled=False):
        means = [encode(model, tokenize(model.tokenizer, t)["input_ids"]).double().mean(0) for t in prompts.values()]
        states = torch.stack(means).cpu()
        weights = [layer.weight.double().cpu() for layer in kv_layers(model.unet).values()]
    # The products of all layers' outputs, without the outputs: they would take some hundred MB a concept.
    metric = torch.stack([weight.mT @ weight for weight in weights]).sum(0)
    centred = states - states.mean(0)
    products = torch.einsum("ild,de,jle->ij", centred, metric, centred)
    norms = products.diagonal().sqrt()
    return products / norms.outer(norms)


def miniature_prompts(kind: Kind) -> dict[str, list[str]]:
    """For each style or object of the miniature, a prompt for each of its names, without a partner.

    Example:
        >>> miniature_prompts("object")["ring"]
        ['a ring image', 'a donut image', 'a hoop image']
    """
    names = STYLES if one_of("kind", kind, Kind) == "style" else OBJECTS
    return {name: [concept(name).alone(word) for word in words] for name, words in names.items()}


def ranked_neighbours(
    similarities: Tensor, names: Sequence[str], target: str, count: int = 2, anchor: str | None = None
) -> Neighbours:
    """The nearest and the furthest concepts, without the anchor. Ties are broken alphabetically.

    Args:
        similarities: Similarities of all concepts, shape ``(N, N)``, such as those of
            [`concept_similarities`][lightning_unlearn.diffusion.canvas.neighbours.concept_similarities].
        names: The ``N`` concepts.
        target: The concept.
        count: How many concepts are near, and how many far. The anchor counts, if it is among them, but is left out.
        anchor: The concept that replaces the target.

    Raises:
        ValueError: If the target is unknown, or there are too few others.

    Example:
        >>> ranked_neighbours(torch.eye(5), ["a", "b", "c", "d", "e"], "c", anchor="b")
        Neighbours(near=('a',), far=('d', 'e'), anchor='b')
    """
    one_of("target", target, names)
    at_least("count", count, 1)
    if len(names) - 1 < 2 * count:
        raise ValueError(
            f"{count} near and {count} far concepts are more than the {len(names) - 1} others of {target}."
        )
    row = similarities[list(names).index(target)].tolist()
    others = [
        name for _, name in sorted((-value, name) for value, name in zip(row, names, strict=True) if name != target)
    ]
    near, far = ([name for name in part if name != anchor] for part in (others[:count], others[-count:]))
    return Neighbours(tuple(near), tuple(far), anchor)


def mask_overlaps(size: int = 512) -> Tensor:
    """Intersection over union of the miniature's shapes: how alike its objects look.

    Args:
        size: Side of the masks in pixels.

    Returns:
        Shape ``(O, O)``, in [0, 1], fp64.
    """
    masks = torch.stack([shape(name, size) for name in OBJECTS]).flatten(1).double()
    common = masks @ masks.mT
    areas = masks.sum(1)
    return common / (areas[:, None] + areas - common)


def read_neighbours(path: str | Path, known: Sequence[str]) -> dict[str, Neighbours]:
    """Groups of neighbours from a JSON file, ``{"Monet": {"near": ["Van_Gogh"], "far": ["Bricks"]}, ...}``.

    Args:
        path: The file; each concept has lists under ``near`` and ``far``, and may have an ``anchor``.
        known: The names that exist.

    Raises:
        ValueError: If a name is unknown, a list is missing, or a concept is its own neighbour or is near and far.
    """
    groups = json.loads(Path(path).read_text(encoding="utf-8"))
    found = {}
    for name, group in groups.items():
        if not isinstance(group, dict) or not group.get("near") or not group.get("far"):
            raise ValueError(f"{path}: {name!r} needs lists of names under 'near' and 'far', but has {group!r}.")
        lists = [name, *group["near"], *group["far"]]
        strange = [entry for entry in [*lists, *filter(None, [group.get("anchor")])] if entry not in known]
        if strange:
            raise ValueError(f"{path}: there is no {strange[0]!r} among {', '.join(list(known)[:5])}...")
        if len(set(lists)) < len(lists):
            raise ValueError(f"{path}: {name!r} has a neighbour twice, or is its own: {group!r}.")
        found[name] = Neighbours(tuple(group["near"]), tuple(group["far"]), group.get("anchor"))
    return found
