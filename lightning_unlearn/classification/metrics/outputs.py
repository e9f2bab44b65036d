"""Classifier outputs on named sets, collected in one pass for all metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.classification.metrics.checks import check_outputs
from lightning_unlearn.core.lightning import LightningModule, isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, classifier_nll, prediction_score
from lightning_unlearn.core.transfer import transferred

__all__ = ["Outputs", "collect_outputs", "join_outputs", "read_outputs"]


class Outputs(NamedTuple):
    """Logits and labels of the rows of one set, the arguments of the metrics.

    Args:
        logits: Shape ``(N, K)``, fp32, on the CPU.
        labels: Shape ``(N,)``, on the CPU.
    """

    logits: Tensor
    labels: Tensor


def collect_outputs(
    module: LightningModule, loaders: Mapping[str, Iterable[Batch]], score: Score = classifier_nll
) -> dict[str, Outputs]:
    """Run a classifier once over each set, in evaluation mode and without gradients, batch by batch.

    Accuracies, membership inference, U-LiRA and divergences all read these outputs, so the model runs only once. Use
    loaders with test-time transforms: accuracy on augmented rows is a different quantity. Modes of submodules and the
    random state are restored. With several processes, each reads its own loaders, and the metrics combine the parts.

    Args:
        module: Any LightningModule that classifies.
        loaders: Batches by set name, usually ``forget``, ``retain`` and ``test``.
        score: Reads logits and labels from the module; made by
            [`from_predictions`][lightning_unlearn.from_predictions].

    Returns:
        The outputs of each set, in the order of its loader.

    Raises:
        ValueError: If the score gives no logits, a set is empty or a logit is not finite.

    Example:
        >>> class Identity(LightningModule):
        ...     def forward(self, x):
        ...         return x
        >>> rows = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([0, 0]))]
        >>> collect_outputs(Identity(), {"forget": rows})["forget"].labels
        tensor([0, 1, 0, 0])
    """
    score = prediction_score("collect_outputs", score, "reads logits")
    with isolate_rng(), evaluating(module):
        return {
            name: join_outputs(
                name,
                [read_outputs(module, transferred(module, b), score) for b in loader],
            )
            for name, loader in loaders.items()
        }


def read_outputs(module: LightningModule, batch: Batch, score: PredictionScore) -> Outputs:
    """The outputs on a batch that is on the module's device."""
    predictions = score.predictions(module, batch)
    return Outputs(predictions.logits.float().cpu(), predictions.classes().cpu())


def join_outputs(name: str, parts: Sequence[Outputs]) -> Outputs:
    """The outputs on a set, joined from those on its batches.

    Raises:
        ValueError: If there are none, or a metric could not read them.
    """
    if not parts:
        raise ValueError(f"The loader {name!r} gave no batch. Leave the set out, or give it rows.")
    outputs = Outputs(*(torch.cat(column) for column in zip(*parts, strict=True)))
    try:
        check_outputs(*outputs)
    except ValueError as error:
        raise ValueError(f"Set {name!r}: {error}") from None
    return outputs
