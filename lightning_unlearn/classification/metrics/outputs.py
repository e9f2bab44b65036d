"""One pass over the model for every metric that reads outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_unlearn.classification.metrics.checks import check_outputs
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, classifier_nll

__all__ = ["Outputs", "collect_outputs"]


class Outputs(NamedTuple):
    """What a model says about the rows of one set.

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

    Accuracies, membership inference, U-LiRA and divergences all read these outputs, so the model runs once. Give
    loaders with test-time transforms: accuracy on augmented rows is another quantity. Each submodule's mode is restored
    and the random state of the caller is left alone. With several processes each reads its own loaders; the metrics
    put the parts together.

    Args:
        module: Any LightningModule that classifies.
        loaders: Batches by name of the set, usually ``forget``, ``retain`` and ``test``.
        score: Reads logits and labels off the module; made by
            [`from_predictions`][lightning_unlearn.from_predictions].

    Returns:
        The outputs of each set, in the order of its loader.

    Raises:
        TypeError: If the score can't give logits.
        ValueError: If a set is empty or has non-finite logits.

    Example:
        >>> class Identity(LightningModule):
        ...     def forward(self, x):
        ...         return x
        >>> rows = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([0, 0]))]
        >>> collect_outputs(Identity(), {"forget": rows})["forget"].labels
        tensor([0, 1, 0, 0])
    """
    if not isinstance(score, PredictionScore):
        raise TypeError(
            f"collect_outputs needs the logits behind the score, and {getattr(score, '__name__', score)!r} has none. "
            "Make one with lightning_unlearn.from_predictions."
        )
    outputs = {}
    with isolate_rng(), evaluating(module):
        for name, loader in loaders.items():
            parts = [_predict(module, batch, score) for batch in loader]
            if not parts:
                raise ValueError(f"The loader {name!r} gave no batch. Leave the set out, or give it rows.")
            logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
            try:
                check_outputs(logits, labels)
            except ValueError as error:
                raise ValueError(f"Set {name!r}: {error}") from None
            outputs[name] = Outputs(logits, labels)
    return outputs


def _predict(module: LightningModule, batch: Batch, score: PredictionScore) -> tuple[Tensor, Tensor]:
    batch = module.transfer_batch_to_device(batch, module.device, 0)
    predictions = score.predictions(module, batch)
    return predictions.logits.float().cpu(), predictions.labels.cpu()
