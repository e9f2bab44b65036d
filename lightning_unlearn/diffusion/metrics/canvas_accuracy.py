"""UA, IRA and CRA of UnlearnCanvas, counted batch by batch and over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.diffusion.canvas.counts import AnswerCounts
from lightning_unlearn.diffusion.canvas.names import CanvasNames
from lightning_unlearn.diffusion.metrics.canvas_read_outs import PairTest
from lightning_unlearn.diffusion.metrics.features import refuse
from lightning_unlearn.functional.diffusion.canvas_accuracy import canvas_accuracies, pair_accuracies, pair_quadrants

__all__ = ["CanvasAccuracy"]

_LISTED = 5


class CanvasAccuracy(Metric):
    """Accuracies of a model on an answer set that two judges label batch by batch.

    It keeps four counts for each style and object. If the labels are available as
    [`AnswerScores`][lightning_unlearn.AnswerScores], `AccuracyMatrix` computes the same numbers from them.

    Call `update` rather than the metric itself: a single batch does not have images of all styles and objects.

    Args:
        names: The styles and objects.
        target: What the model has unlearned: a style, an object, or a pair of both; ``compute`` can be told another.
        include_target: Whether CRA counts the images in which the target was asked for, as the published code does.
        photo: Whether prompts for photos count, as one more style and as images of the objects.
        test: Whether an image of a pair is right if ``"both"``, its ``"style"`` or its ``"object"`` is.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If the target is unknown, or in ``compute`` if there is none, or images are missing.

    Example:
        >>> names = CanvasNames(("A", "B"), ("x", "y"), photo=None)
        >>> accuracy = CanvasAccuracy(names, target="A")
        >>> style, object = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> accuracy.update(torch.tensor([1, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), style, object)
        >>> accuracy.compute()
        {'UA': tensor(0.5000), 'IRA': tensor(1.), 'CRA': tensor(0.7500)}
        >>> accuracy.compute(("A", "x"))
        {'UA': tensor(1.), 'SC': tensor(0.), 'OC': tensor(1.), 'UP': tensor(1.)}

    References:
        Zhang et al., *UnlearnCanvas: Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion
        Models*, arXiv:2402.11846.
    """

    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    style_hits: Tensor
    object_hits: Tensor
    both_hits: Tensor
    n: Tensor

    def __init__(
        self,
        names: CanvasNames,
        target: str | tuple[str, str] | None = None,
        include_target: bool = True,
        photo: bool = False,
        test: PairTest = "both",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"compute_with_cache": False, **kwargs})  # what was computed may be of another target
        self.names, self.include_target, self.photo = names, include_target, photo
        self.test, self.target = one_of("test", test, PairTest), target
        if target is not None:
            self._places(target)
        for name in ("style_hits", "object_hits", "both_hits", "n"):
            counts = torch.zeros(len(names.all_styles), len(names.objects), dtype=torch.long)
            self.add_state(name, counts, dist_reduce_fx="sum")

    def update(self, predicted_style: Tensor, predicted_object: Tensor, style: Tensor, object: Tensor) -> None:
        """Count a batch of images.

        Args:
            predicted_style: What the style judge sees, positions in ``names.all_styles``, shape ``(B,)``.
            predicted_object: What the object judge sees, positions in ``names.objects``, shape ``(B,)``.
            style: The style that was asked for, shape ``(B,)``.
            object: The object that was asked for, shape ``(B,)``.

        Raises:
            ValueError: If lengths differ, or a label is no such position.
        """
        labels = {
            "predicted_style": (predicted_style, len(self.names.all_styles)),
            "predicted_object": (predicted_object, len(self.names.objects)),
            "style": (style, len(self.names.all_styles)),
            "object": (object, len(self.names.objects)),
        }
        for name, (values, count) in labels.items():
            if values.shape != style.shape or values.dim() != 1 or values.is_floating_point():
                raise ValueError(
                    f"{name} must be integers of shape (B,), as many as styles that were asked for, but got "
                    f"{tuple(values.shape)} {values.dtype} for {tuple(style.shape)}."
                )
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < count:
                raise ValueError(f"{name} must be in [0, {count - 1}], but is in [{values.min()}, {values.max()}].")
        seen_style, seen_object, style, object = (values.to(self.device).long() for values, _ in labels.values())
        right = seen_style == style, seen_object == object
        counted = (*right, right[0] & right[1], torch.ones_like(right[0]))
        cells = style * len(self.names.objects) + object
        for state, hits in zip((self.style_hits, self.object_hits, self.both_hits, self.n), counted, strict=True):
            state.view(-1).index_add_(0, cells, hits.long())

    def compute(self, target: str | tuple[str, str] | None = None) -> dict[str, Tensor]:
        """Accuracies in [0, 1].

        Args:
            target: The target, by default that of the constructor.

        Returns:
            ``UA``, ``IRA`` and ``CRA`` of a style or an object; ``UA``, ``SC``, ``OC`` and ``UP`` of a pair.
        """
        try:
            found = self._read(self.target if target is None else target)
        except ValueError as error:
            refuse(self, str(error))
        return {name.upper(): value.float().to(self.device) for name, value in found.items()}

    def _read(self, target: str | tuple[str, str] | None) -> dict[str, Tensor]:
        if target is None:
            raise ValueError("What has the model unlearned? Pass target, a style, an object or a pair of both.")
        rows = None if self.photo else len(self.names.styles)
        states = (self.style_hits, self.object_hits, self.both_hits, self.n)
        counts = AnswerCounts(*(state[:rows].cpu() for state in states))
        style, object = self._places(target)
        if style is not None and object is not None:
            pair = pair_quadrants(counts.n.shape[0], counts.n.shape[1], style, object)[0]
            self._refuse_uneven(counts.n, pair)
            return pair_accuracies(getattr(counts, self.test), counts.n, style, object)._asdict()
        self._refuse_uneven(counts.n, torch.zeros_like(counts.n, dtype=torch.bool))
        kind, place = ("style", style) if style is not None else ("object", object)
        found = canvas_accuracies(counts.style, counts.object, counts.n, kind, place, self.include_target)  # type: ignore[arg-type]
        return found._asdict()

    def _places(self, target: str | tuple[str, str]) -> tuple[int | None, int | None]:
        if isinstance(target, str):
            kind = self.names.kind(target)
            place = self.names.of(kind).index(target)
            return (place, None) if kind == "style" else (None, place)
        style, object = target
        return (
            self.names.styles.index(one_of("the target's style", style, self.names.styles)),
            self.names.objects.index(one_of("the target's object", object, self.names.objects)),
        )

    def _refuse_uneven(self, n: Tensor, pair: Tensor) -> None:
        """All styles and objects need equally many images; a pair that was unlearned may have more."""
        expected = int(n[~pair].max())
        uneven = (n == 0) | ((n != expected) & ~pair)
        if not uneven.any():
            return
        cells = [
            f"{self.names.all_styles[s]} x {self.names.objects[o]} {int(n[s, o])}" for s, o in uneven.nonzero().tolist()
        ]
        listed = ", ".join(cells[:_LISTED]) + (", ..." if len(cells) > _LISTED else "")
        raise ValueError(
            f"CanvasAccuracy needs as many images of every style and object, up to {expected} here, but {len(cells)} "
            f"have another number: {listed}. Sample what is missing; and let no sampler give a row to two processes."
        )
