"""Judges of style and object, and a feature extractor, as one function of 8-bit images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.diffusion.canvas.judges import CanvasJudges
from lightning_unlearn.diffusion.canvas.names import CanvasNames, Kind
from lightning_unlearn.diffusion.judges import Judge

__all__ = ["AnyJudge", "Extractor", "FeatureFunction", "JudgePanel", "Judges", "identity"]

AnyJudge: TypeAlias = Judge | Callable[[Tensor], Any]
"""A `Judge`; or a function of images that returns labels ``(B,)``, alone or first, which are positions in the names."""

Judges: TypeAlias = CanvasJudges | tuple[AnyJudge, AnyJudge]
"""Of the style and of the object."""

Extractor: TypeAlias = Callable[[Tensor], Tensor]
"""Gives features ``(B, D)`` of images ``(B, 3, H, W)`` with colours in [0, 1]."""


class FeatureFunction:
    """A function that gives features, on 8-bit images.

    Args:
        extractor: The function. Where it is a module, it runs in evaluation mode, on the device of its weights.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.modules = _modules(extractor)
        self.source = identity(extractor)

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``, fp32, on the CPU, of images ``(B, 3, H, W)``, uint8.

        Raises:
            ValueError: If the function gives another shape.
        """
        with evaluating(self.modules):
            features = self.extractor(_colours(images, self.modules))
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(f"Features have the shape (B, D), but {len(images)} images got {tuple(features.shape)}.")
        return features.float().cpu()


class JudgePanel:
    """A judge of the style and one of the object.

    Args:
        judges: `CanvasJudges`, two judges whose classes are the names, or two functions that return positions in them.
        names: The styles and objects.
        features: ``"judges"``, a function, or nothing.

    Raises:
        TypeError: If the judges are something else.
        ValueError: If they are of other names, or have no features though these are asked for.
    """

    def __init__(self, judges: Judges, names: CanvasNames, features: Literal["judges"] | Extractor | None) -> None:
        self.names = names
        self.judges: dict[Kind, Any]
        self.together: CanvasJudges | None
        self.judges, self.together = _taken(judges, names)
        self.modules = _modules(*self.judges.values())
        self.from_judges = features == "judges"
        self.extractor = FeatureFunction(features) if callable(features) else None
        if self.from_judges and self.together is None:
            raise ValueError(
                "features='judges' are those of judges with classes, but these are mere functions. Pass CanvasJudges, "
                "or a function that gives features."
            )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Styles and objects ``(B,)`` of images ``(B, 3, H, W)``, uint8, and features ``(B, D)``, on the CPU."""
        features = None
        with evaluating(self.modules):
            colours = _colours(images, self.modules)
            if self.together is None:
                styles, objects = (self._labels(kind, judge(colours)) for kind, judge in self.judges.items())
            elif self.from_judges:
                styles, objects, features = self.together.with_features(colours)
                features = features.float().cpu()
            else:
                styles, objects = self.together(colours)
        if self.extractor is not None:
            features = self.extractor(images)
        return styles.cpu(), objects.cpu(), features

    @property
    def source(self) -> str | None:
        """What distinguishes the features from others; ``None`` without features."""
        if self.from_judges:
            return " and ".join(map(identity, self.judges.values()))
        return None if self.extractor is None else self.extractor.source

    @property
    def record(self) -> dict[str, Any]:
        """What the verdicts depend on beside the images."""
        weight = next(self.modules.parameters(), torch.empty(0))
        device = weight.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return {**{kind: identity(judge) for kind, judge in self.judges.items()}, "precision": str(precision)}

    def _labels(self, kind: Kind, verdict: Any) -> Tensor:
        labels: Tensor = verdict[0] if isinstance(verdict, tuple) else verdict
        known = len(self.names.all_styles if kind == "style" else self.names.objects)
        whole = labels.ndim == 1 and not labels.is_floating_point() and len(labels) > 0
        if not whole or not 0 <= int(labels.min()) <= int(labels.max()) < known:
            raise ValueError(
                f"The {kind} judge has no classes, so it gives positions in the names, whole numbers (B,) from 0 to "
                f"{known - 1}; but it gave {labels.dtype} of shape {tuple(labels.shape)}"
                f"{f' up to {int(labels.max())}' if whole else ''}."
            )
        return labels.long()


def identity(judge: Any) -> str:
    """Name and version of a judge or a function, from its attributes, its weights or its place in the code."""
    owner = getattr(judge, "__self__", None)
    if isinstance(owner, nn.Module):
        return f"{judge.__name__} of {identity(owner)}"
    name = getattr(judge, "name", None) or getattr(judge, "__qualname__", None) or type(judge).__name__
    version = getattr(judge, "version", None)
    if version is None and isinstance(judge, nn.Module):
        state = hashlib.sha256()
        for key, weight in judge.state_dict().items():
            state.update(key.encode() + weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        version = state.hexdigest()[:12]
    return f"{name}@{version}" if version else f"{name}"


def _taken(judges: Any, names: CanvasNames) -> tuple[dict[Kind, Any], CanvasJudges | None]:
    if not isinstance(judges, CanvasJudges):
        if not isinstance(judges, Sequence) or len(judges) != 2 or not all(map(callable, judges)):
            raise TypeError(
                f"judges are CanvasJudges, or a judge of the style and one of the object, but got {judges!r}."
            )
        if not all(hasattr(judge, "classes") for judge in judges):
            return {"style": judges[0], "object": judges[1]}, None
        judges = CanvasJudges(judges[0], judges[1], names)
    if (judges.names.all_styles, judges.names.objects) != (names.all_styles, names.objects):
        raise ValueError("The judges are of other styles and objects than the names. Pass names=judges.names.")
    return {"style": judges.style, "object": judges.object}, judges


def _modules(*functions: Any) -> nn.ModuleList:
    owners = [getattr(function, "__self__", function) for function in functions]
    return nn.ModuleList([owner for owner in owners if isinstance(owner, nn.Module)])


def _colours(images: Tensor, modules: nn.Module) -> Tensor:
    weight = next(modules.parameters(), None)
    return (images if weight is None else images.to(weight.device, non_blocking=True)).float().div_(255)
