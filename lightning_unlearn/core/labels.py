"""Logits and labels of a classifier's batch, with checks."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, NoReturn

from torch import Tensor

from lightning_unlearn.core.batches import as_mapping
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, rank_zero_warn
from lightning_unlearn.functional.likelihood import IGNORE_INDEX

__all__ = ["check_probabilities", "check_range", "described", "read_classifier", "refuse_labels"]

_LABELS = ("labels", "label")
_OWN_LOSS = (
    "For a regression, or any other loss, read the module's own: GradientAscent, GradDiff, FineTune, L1Sparse, CFk, "
    "EUk, SSD and Retrain take score=training_step_loss, and with NPO, SimNPO and InfluenceUnlearning also a function "
    "of yours (module, batch) -> NLL of shape (B,)."
)


def read_classifier(score: str, module: LightningModule, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits and labels of a batch."""
    named = as_mapping(batch) or {}
    name = next((name for name in _LABELS if name in named), None)
    if isinstance(batch, (tuple, list)) and len(batch) == 3 and name is None and _weighted(*batch):
        rank_zero_warn(
            f"{score} reads likelihoods, and leaves out the third part of (inputs, labels, weights): no row weighs "
            "more than another. To weigh them, write a score (module, batch) -> NLL of shape (B,)."
        )
        batch = batch[:2]
    if name is not None:
        labels = named[name]
        output = _called(module, {k: v for k, v in named.items() if k not in (name, "index")})
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        labels, output = batch[1], module(batch[0])
    else:
        raise TypeError(
            f"{score} reads (inputs, labels) or a dict with 'labels', but got {described(batch)}. "
            "Write a function (module, batch) -> NLL of shape (B,) and pass it as score."
        )
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise MisconfigurationException(
            f"{score} reads logits, but {type(module).__name__}.forward returned {described(output)}. Let it return a "
            "tensor of logits or an object with .logits, or decorate a function (module, batch) -> Predictions with "
            "from_predictions."
        )
    if not isinstance(labels, Tensor):
        raise MisconfigurationException(f"{score} reads a tensor of labels, but got {described(labels)}.")
    return logits, labels


def _weighted(inputs: Any, labels: Any, weights: Any) -> bool:
    """Whether three parts of a batch are inputs, labels and a weight for each row, and not two inputs and labels."""
    return (
        all(isinstance(part, Tensor) for part in (inputs, labels, weights))
        and weights.is_floating_point()
        and weights.shape in (inputs.shape[:1], (len(labels), 1))
        and (inputs.dim() > 1 or inputs.is_floating_point())
    )


def _called(module: LightningModule, inputs: dict[str, Any]) -> Any:
    """The module's output for named inputs; a single one need not have the name of its argument."""
    if len(inputs) == 1:
        (name, value), *_ = inputs.items()
        parameters = signature(module.forward).parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        if name not in parameters and kinds & {Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL}:
            return module(value)
    return module(**inputs)


def refuse_labels(score: str, wanted: str, logits: Tensor, labels: Tensor) -> NoReturn:
    """Refuse logits and labels of other shapes than a score reads, and name the score that reads them.

    Raises:
        MisconfigurationException: Always.
    """
    whole, per_row = not labels.is_floating_point(), labels[:1].numel()
    ways = {
        "binary_nll (one logit for each yes-or-no label)": logits.dim() > 0 and logits[:1].numel() == per_row,
        "soft_label_nll (one-hot or soft labels)": logits.dim() == 2 and labels.shape == logits.shape and per_row > 1,
        "segmentation_nll (a class for each pixel)": logits.dim() > 2 and whole,
        "classifier_nll (class numbers)": logits.dim() == 2 and labels.dim() == 1 and whole,
    }
    others = [way for way, fits in ways.items() if fits and not way.startswith(score)]
    instead = f"Take score={' or '.join(others)}. " if others else ""
    raise MisconfigurationException(
        f"{score} needs {wanted}, but labels are {str(labels.dtype).removeprefix('torch.')} of shape "
        f"{tuple(labels.shape)} and logits of shape {tuple(logits.shape)}. {instead}{_OWN_LOSS}"
    )


def check_range(score: str, labels: Tensor, classes: int) -> None:
    """Refuse labels of classes that the model does not have.

    Raises:
        MisconfigurationException: If a label other than -100 is outside of ``[0, classes)``.
    """
    low, high = _bounds(labels.masked_fill(labels == IGNORE_INDEX, 0))
    if not 0 <= low <= high < classes:
        raise MisconfigurationException(
            f"{score} needs labels from 0 to {classes - 1}, as the model has {classes} classes, but they "
            f"go from {low:.0f} to {high:.0f}. Number the classes from 0, and give the model as many outputs."
        )


def check_probabilities(score: str, labels: Tensor, sums_to_1: bool = False) -> None:
    """Refuse soft labels that are no probabilities.

    Raises:
        MisconfigurationException: If one is outside of [0, 1], or a row of distributions does not sum to 1.
    """
    low, high = _bounds(labels)
    if not 0 <= low <= high <= 1.001:
        raise MisconfigurationException(
            f"{score} needs labels in [0, 1], but they go from {low:.4g} to {high:.4g}. {_OWN_LOSS}"
        )
    least, most = _bounds(labels.sum(-1)) if sums_to_1 else (1.0, 1.0)
    if not 0.999 <= least <= most <= 1.001:
        raise MisconfigurationException(
            f"{score} needs a distribution over the classes in each row, but the sums of rows go from {least:.4g} to "
            f"{most:.4g}. Where a row may have several labels, take score=binary_nll. {_OWN_LOSS}"
        )


def described(value: Any) -> str:
    """What was given, for an error: its type, and its names or length."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {sorted(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _bounds(values: Tensor) -> tuple[float, float]:
    """Smallest and largest value; 1, which a check of probabilities or classes passes, where ``vmap`` hides them."""
    try:
        return (float(values.min()), float(values.max())) if values.numel() else (1.0, 1.0)
    except RuntimeError:
        return 1.0, 1.0
