"""Pair of judges of the style and the object of canvas images."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.diffusion.canvas.classifier import CanvasClassifier
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS, UNLEARN_CANVAS, CanvasNames, Kind, names_of
from lightning_unlearn.diffusion.judges import Judge, MiniatureJudge, class_numbers
from lightning_unlearn.diffusion.metrics.features import PenultimateFeatures

__all__ = ["CanvasJudges", "HeadJudge"]

_KINDS: tuple[Kind, ...] = ("style", "object")


class HeadJudge(nn.Module):
    """One head of a [`CanvasClassifier`][lightning_unlearn.CanvasClassifier] as a judge.

    Args:
        network: The classifier.
        kind: Which head.
        name: Name in reports, to which the kind is added.
        version: Distinguishes judges of one name; by default a hash of the network.

    Raises:
        ValueError: If the network has no such head.
    """

    def __init__(self, network: CanvasClassifier, kind: Kind, name: str = "canvas", version: str | None = None) -> None:
        super().__init__()
        one_of("kind", kind, tuple(network.classes), "The network has no other head.")
        self.network, self.kind = network, kind
        self.name = f"{name}-{kind}"
        self.version = network.version() if version is None else version
        self.classes = network.classes[kind]
        self.requires_grad_(False).eval()

    @property
    def size(self) -> int:
        """Side in pixels of the images that it sees; others are resized."""
        return self.network.size

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and scores of images, as every [`Judge`][lightning_unlearn.Judge] gives them."""
        with evaluating(self):
            return super().__call__(images)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels ``(B,)`` and probabilities ``(B, len(classes))``."""
        scores = self.network(images)[self.kind].float().softmax(1).to(images.device)
        return scores.argmax(1), scores


class CanvasJudges(nn.Module):
    """A judge of the style and one of the object, whose labels are positions in the names of a benchmark.

    Judges may have their classes in any order: they are matched by name. If both are heads of one network, an image
    passes through it once.

    Args:
        style: Its classes are the styles and the photos of ``names``. The class of the photos may have the name of
            their folder or the word that prompts use.
        object: Its classes are the objects of ``names``.
        names: The styles and objects, or ``"unlearncanvas"`` or ``"mini"``.

    Raises:
        ValueError: If a name is no class of its judge, or a class has no name.

    Example:
        >>> from lightning_unlearn.diffusion.data.miniature import render
        >>> judges, images = CanvasJudges.miniature(), render("ring", "sketch", 0)[None]
        >>> style, object = judges(images)
        >>> judges.names.all_styles[style[0]], judges.names.objects[object[0]], judges.features(images).shape
        ('sketch', 'ring', torch.Size([1, 1024]))
    """

    def __init__(self, style: Judge, object: Judge, names: CanvasNames | str = UNLEARN_CANVAS) -> None:
        super().__init__()
        self.names = names_of(names)
        self.style, self.object = style, object
        self._styles = _positions(style, "style", self.names)
        self._objects = _positions(object, "object", self.names)

    @classmethod
    def miniature(cls) -> CanvasJudges:
        """Those of the miniature that the package ships, which are two networks."""
        return cls(MiniatureJudge("style"), MiniatureJudge("object"), MINI_CANVAS)

    @classmethod
    def from_pretrained(cls, folder: str | Path, names: CanvasNames | str = UNLEARN_CANVAS) -> CanvasJudges:
        """The two heads of a network that `train_canvas_judges` saved."""
        return cls.of(CanvasClassifier.from_pretrained(folder), names, Path(folder).resolve().name)

    @classmethod
    def of(cls, network: CanvasClassifier, names: CanvasNames | str, name: str = "canvas") -> CanvasJudges:
        """The two heads of a network; ``name`` is that of the judges in reports.

        Raises:
            ValueError: If it has not both heads, or their classes are not the names.
        """
        version = network.version()
        return cls(HeadJudge(network, "style", name, version), HeadJudge(network, "object", name, version), names)

    @property
    def version(self) -> str:
        """Names and versions of both, by which a file of verdicts says whose they are."""
        return " ".join(f"{judge.name}@{judge.version}" for judge in (self.style, self.object))

    @property
    def size(self) -> int | None:
        """Side in pixels of the images that both see, to which images may be resized before; ``None`` if unknown."""
        sides = {getattr(judge, "size", None) for judge in (self.style, self.object)}
        return sides.pop() if len(sides) == 1 else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Styles and objects of images ``(B, 3, H, W)`` with colours in [0, 1], each ``(B,)``, int64.

        They are positions in ``names.all_styles`` and in ``names.objects``.
        """
        if self._network is not None:
            return self.with_features(images)[:2]
        with evaluating(self):
            return self._named(self.style(images)[0], self.object(images)[0])

    def features(self, images: Tensor) -> Tensor:
        """Features of images for FID and KID, shape ``(B, D)``, fp32.

        What the heads of a shared network read, and otherwise what the last linear layer of the judge of the object
        reads.
        """
        if self._network is None:
            return self._penultimate(images)
        with evaluating(self):
            return self._network.features(images).float().to(images.device)

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Styles, objects and features of images, in one pass of each network."""
        with evaluating(self):
            if self._network is None:
                (objects, _), features = self._penultimate.with_outputs(images)
                return *self._named(self.style(images)[0], objects), features
            features = self._network.features(images)
            logits = self._network.logits(features)
        labels = (logits[kind].argmax(1).to(images.device) for kind in _KINDS)
        return *self._named(*labels), features.float().to(images.device)

    @property
    def _network(self) -> CanvasClassifier | None:
        """The network of both heads, if it is one."""
        networks = [judge.network for judge in (self.style, self.object) if isinstance(judge, HeadJudge)]
        return networks[0] if len(networks) == 2 and networks[0] is networks[1] else None

    @cached_property
    def _penultimate(self) -> PenultimateFeatures:
        return PenultimateFeatures(self.object)  # type: ignore[arg-type]

    def _named(self, style: Tensor, object: Tensor) -> tuple[Tensor, Tensor]:
        return self._styles.to(style.device)[style], self._objects.to(object.device)[object]


def _positions(judge: Judge, kind: Kind, names: CanvasNames) -> Tensor:
    """The position in the names of each label of a judge."""
    wanted = names.all_styles if kind == "style" else names.objects
    spoken = [names.word(name) if name == names.photo and name not in judge.classes else name for name in wanted]
    labels = class_numbers(judge, spoken)
    others = sorted(judge.classes[label] for label in set(range(len(judge.classes))) - set(labels))
    if others:
        raise ValueError(
            f"{judge.name} knows {', '.join(others[:5])}, which is no {kind} of these names. Verdicts need a name for "
            "each class: give the names that the judge was trained on."
        )
    positions = torch.empty(len(labels), dtype=torch.int64)
    positions[torch.tensor(labels)] = torch.arange(len(labels))
    return positions
