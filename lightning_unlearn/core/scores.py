"""Scores: functions ``(module, batch) -> per-example negative log-likelihood (B,)``.

A score made by [`from_predictions`][lightning_unlearn.from_predictions] also gives the logits behind the
likelihoods, as ``score.predictions(module, batch)``; objectives on logits (KL) need such a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import function
from lightning_unlearn.core.labels import check_range, described, read_classifier, refuse_labels
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.own_training import own_loss
from lightning_unlearn.functional.likelihood import IGNORE_INDEX, row_sum, token_nll

__all__ = [
    "Batch",
    "PredictionScore",
    "Predictions",
    "Score",
    "causal_lm_nll",
    "classifier_nll",
    "from_predictions",
    "head_only_at",
    "logits_of",
    "output_head",
    "prediction_score",
    "score_function",
    "training_step_loss",
]

Batch = Any
"""The rows of one role, as the user's collate function made them."""

Score = Callable[[LightningModule, Batch], Tensor]
"""Reads per-example negative log-likelihoods ``(B,)`` off a module."""


class Predictions(NamedTuple):
    """Logits at the labelled positions only.

    Args:
        logits: Shape ``(N, V)``, one row a supervised position, in the type the model computed them.
        labels: Shape ``(N,)``, or ``(N, V)`` for a distribution over the classes at each position.
        rows: The batch row that each position belongs to, ascending, shape ``(N,)``.
        size: Number of rows in the batch, ``B``.
    """

    logits: Tensor
    labels: Tensor
    rows: Tensor
    size: int

    def nll(self) -> Tensor:
        """Negative log-likelihood of each row, summed over its supervised positions in fp32, shape ``(B,)``."""
        return row_sum(token_nll(self.logits, self.labels), self.rows, self.size)

    def classes(self) -> Tensor:
        """The class of each position, shape ``(N,)``: of a distribution the likeliest."""
        return self.labels if self.labels.dim() == 1 else self.labels.argmax(1)

    def length(self) -> Tensor:
        """Supervised positions of each row, shape ``(B,)``, fp32."""
        return torch.bincount(self.rows, minlength=self.size).float()


class PredictionScore:
    """A score that also gives the logits behind its likelihoods.

    ``score(module, batch)`` is ``score.predictions(module, batch).nll()``.

    Args:
        predict: ``(module, batch) -> Predictions``.
    """

    def __init__(self, predict: Callable[[LightningModule, Batch], Predictions]) -> None:
        self.predictions = predict
        # Not functools.update_wrapper: what a score returns is not what `predict` returns.
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(self, name, getattr(predict, name))
        self.__annotations__ = {"return": Tensor}  # where the command line looks up what a function returns

    def __call__(self, module: LightningModule, batch: Batch) -> Tensor:
        """Per-example negative log-likelihood, shape ``(B,)``, fp32."""
        return self.predictions(module, batch).nll()

    def __reduce__(self) -> str:
        return self.__qualname__  # type: ignore[attr-defined]


def from_predictions(predict: Callable[[LightningModule, Batch], Predictions]) -> PredictionScore:
    """Turn a function that reads predictions into a score; decorate your own reader with it.

    Args:
        predict: ``(module, batch) -> Predictions``.

    Returns:
        A score that returns ``predict(...).nll()`` and carries ``predict`` as its attribute ``predictions``.
    """
    return PredictionScore(predict)


def prediction_score(method: str, score: Score, reason: str) -> PredictionScore:
    """``score``, if it also gives logits.

    Args:
        method: Name of the method.
        score: What was given.
        reason: Why the method needs logits, such as ``"counts errors"``.

    Raises:
        ValueError: If it only gives likelihoods.
    """
    if not isinstance(score, PredictionScore):
        raise ValueError(
            f"{method} {reason}, but score={getattr(score, '__name__', score)} only gives likelihoods. Use "
            "classifier_nll, or decorate a function that returns Predictions with from_predictions."
        )
    return score


def score_function(score: Score) -> Score:
    """``score``, if it can be called as one.

    Raises:
        TypeError: If it can't, or is a ``functools.partial`` without arguments. That would hide the logits of a
            `PredictionScore`, and with them how many tokens a row has.
    """
    function("score", score, "(module, batch) -> NLL of shape (B,)")
    if isinstance(score, partial) and not (score.args or score.keywords):
        name = getattr(score.func, "__name__", "the function")
        raise TypeError(
            f"score must be the function itself, but got a functools.partial of {name} without arguments, which hides "
            f"its logits. Pass {name}. In a Hydra configuration, write _target_: hydra.utils.get_object and path: with "
            "its import path in place of _partial_: true."
        )
    return score


@from_predictions
def causal_lm_nll(module: LightningModule, batch: Batch) -> Predictions:
    """Negative log-likelihood of the supervised tokens of each sequence, summed, under a causal language model.

    The module is called as ``module(input_ids=..., attention_mask=...)`` and may return logits ``(B, T, V)`` or an
    object with ``.logits``. Where the output head of a Hugging Face model can be found, it is run on the supervised
    positions only, so logits of a prompt are never computed.

    Args:
        module: Any LightningModule around a causal language model.
        batch: ``input_ids (B, T)``, ``labels (B, T)`` with -100 where not supervised, and usually
            ``attention_mask (B, T)``.

    Returns:
        Shape ``(B,)``, fp32, in nats.

    Raises:
        TypeError: If the batch is not such a dict, or the module does not take it or returns no logits.
        MisconfigurationException: If the logits have another shape, or a label has none.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch or "labels" not in batch:
        raise TypeError(
            f"causal_lm_nll reads a dict with 'input_ids' and 'labels', but got {described(batch)}. "
            "Use score=classifier_nll for (input, label) pairs, or score=training_step_loss for any other batch."
        )
    labels = batch["labels"][:, 1:]
    rows, columns = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    targets = labels[rows, columns]
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids", "token_type_ids") if k in batch}
    columns = columns - batch["input_ids"].shape[1]  # from the end: some adapters put virtual tokens before a row
    with head_only_at(module, rows, columns):
        output = _called(module, inputs)
    logits = _at_labels(logits_of(output), rows, columns, batch["input_ids"].shape, module)
    _check_tokens(targets, logits.shape[1])
    return Predictions(logits, targets, rows, labels.shape[0])


def logits_of(output: Any) -> Tensor:
    """Logits of what a language model returns: a tensor, an object with ``.logits``, or a tuple that begins with them.

    Raises:
        TypeError: If there are none.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple):
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"forward of the module returns {described(output)}, but logits (B, T, V) or an object with .logits are "
            "needed to read likelihoods. Return the output of the language model as it is, or pass "
            "score=training_step_loss to the methods that take the module's own loss."
        )
    return logits


def _called(module: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """The module's output."""
    try:
        return module(**inputs)
    except TypeError as error:
        try:
            signature(module.forward).bind(**inputs)
        except TypeError as reason:
            raise TypeError(
                f"causal_lm_nll calls {type(module).__name__}.forward({', '.join(f'{name}=...' for name in inputs)}), "
                f"which it does not take: {reason}. Let forward take these arguments, or pass a score of your own."
            ) from error
        raise


def _at_labels(logits: Tensor, rows: Tensor, columns: Tensor, shape: torch.Size, module: nn.Module) -> Tensor:
    """Logits at the places of labels, shape ``(N, V)``, of those of all positions or of these places alone."""
    if logits.dim() == 3 and logits.shape[0] == shape[0] and logits.shape[1] >= shape[1]:
        return logits[rows, columns]
    if logits.dim() == 2 and len(logits) == len(rows):
        return logits
    batch, length = shape
    raise MisconfigurationException(
        f"causal_lm_nll reads logits of shape ({batch}, {length}, V) for input_ids of shape ({batch}, {length}), and "
        f"({len(rows)}, V) where the output layer of a Hugging Face model was run at the {len(rows)} labels alone, but "
        f"{type(module).__name__}.forward returns {tuple(logits.shape)}. Return the logits as the model gives them, "
        "neither shifted nor reshaped nor as a loss: causal_lm_nll shifts the labels itself."
    )


def _check_tokens(labels: Tensor, vocabulary: int) -> None:
    """Refuse labels without a logit; on a GPU, where the check would wait for the device, they are not looked at.

    Raises:
        MisconfigurationException: If there is one.
    """
    if labels.device.type != "cpu" or labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= vocabulary:
        raise MisconfigurationException(
            f"The labels go from {low} to {high}, but the module returns {vocabulary} numbers a position. Give each "
            "token a logit (hidden states, for one, are none), and the label -100 to positions without one."
        )


@from_predictions
def classifier_nll(module: LightningModule, batch: Batch) -> Predictions:
    """Negative log-likelihood of the label under a classifier.

    Args:
        module: Any LightningModule whose ``forward`` returns logits ``(B, K)`` of ``K >= 2`` classes, or an object with
            ``.logits``.
        batch: ``(inputs, labels)``, or a mapping, dataclass or named tuple with ``labels`` or ``label`` whose other
            tensors are the arguments of ``forward``. Labels are class numbers of any integer type, shape ``(B,)`` or
            ``(B, 1)``. Of ``(inputs, labels, weights)`` the weights ``(B,)`` are left out, and a warning says so.

    Returns:
        Shape ``(B,)``, fp32, in nats.

    Raises:
        TypeError: If the batch is none of these.
        MisconfigurationException: If the labels are no class numbers, or there are no logits of at least two classes.
    """
    logits, labels = read_classifier("classifier_nll", module, batch)
    classes = logits.dim() == 2 and logits.shape[1] >= 2
    whole = not labels.is_floating_point() and not labels.is_complex()
    if not classes or not whole or labels.shape not in (logits.shape[:1], (len(logits), 1)):
        refuse_labels("classifier_nll", "class numbers (B,) and logits (B, K) of K >= 2 classes", logits, labels)
    labels = labels.flatten().long()
    check_range("classifier_nll", labels, logits.shape[1])
    return Predictions(logits, labels, torch.arange(len(labels), device=labels.device), len(labels))


def training_step_loss(module: LightningModule, batch: Batch) -> Tensor:
    """The loss of the user's own ``training_step``, for models whose likelihood we can't read.

    It is one number a batch, so it serves the objectives that are linear in it: GradientAscent, GradDiff.

    Args:
        module: Any LightningModule; its own ``training_step`` is called, whatever its arguments.
        batch: Whatever that method takes.

    Returns:
        Shape ``(1,)``.

    Raises:
        SkippedBatch: If ``training_step`` returns None. An objective then skips the batch, as Lightning does.
        TypeError: If it returns something else that is no loss.
    """
    return own_loss(module, batch).reshape(1)


@contextmanager
def head_only_at(module: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let the output head see only the hidden states at ``(rows, columns)``, where there is one to be found."""
    head = output_head(module)
    if head is None:
        yield
        return

    _PLACES.append((rows, columns))
    handle = head.register_forward_pre_hook(_keep_places)
    try:
        yield
    finally:
        handle.remove()
        _PLACES.pop()


# Not in a closure of the hook: torch.compile takes the shapes of what hangs on a module as constant, and would compile
# anew for every number of supervised tokens.
_PLACES: list[tuple[Tensor, Tensor]] = []


def _keep_places(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    rows, columns = _PLACES[-1]
    return (args[0][rows, columns], *args[1:])


def output_head(module: nn.Module) -> nn.Module | None:
    """The layer that turns hidden states into logits, where the model tells it."""
    for child in module.modules():
        get_head = getattr(child, "get_output_embeddings", None)
        if callable(get_head) and isinstance(head := get_head(), nn.Module):
            return head
    return None
