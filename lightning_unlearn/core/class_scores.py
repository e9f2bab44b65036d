"""Scores of classifiers for binary labels, segmentation and soft labels."""

from __future__ import annotations

import torch

from lightning_unlearn.core.labels import check_probabilities, check_range, read_classifier, refuse_labels
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.scores import Batch, Predictions, classifier_nll, from_predictions
from lightning_unlearn.functional.likelihood import IGNORE_INDEX

__all__ = ["CLASS_SCORES", "binary_nll", "segmentation_nll", "soft_label_nll"]

_NO_PIXEL = 255  # what masks of bytes, which cannot hold -100, have where there is no label


@from_predictions
def binary_nll(module: LightningModule, batch: Batch) -> Predictions:
    r"""Negative log-likelihood of yes-or-no labels under a model with one logit each: binary cross-entropy.

    $$\ell = -\sum_i \big[y_i \log \sigma(z_i) + (1 - y_i) \log(1 - \sigma(z_i))\big]$$

    The sum is over the logits of a row: one in a binary classifier, one a label where a row has several labels, one a
    pixel in a binary segmentation. Methods read them as logits $(0, z_i)$ of two classes.

    Args:
        module: Any LightningModule whose ``forward`` returns logits ``(B,)``, ``(B, 1)``, ``(B, L)``, ``(B, H, W)`` or
            ``(B, 1, H, W)``, or an object with ``.logits``.
        batch: As in [`classifier_nll`][lightning_unlearn.classifier_nll], with labels in [0, 1] of the same shape but
            for dimensions of size 1: booleans, integers, or floating-point numbers, which may be soft.

    Returns:
        Shape ``(B,)``, fp32, in nats.

    Raises:
        MisconfigurationException: If logits and labels don't have one shape, or a label is outside of [0, 1].

    Example:
        >>> class Model(LightningModule):
        ...     def forward(self, x):
        ...         return x
        >>> binary_nll(Model(), (torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 1.0])))
        tensor([0.6931, 0.1269])
    """
    logits, labels = read_classifier("binary_nll", module, batch)
    sizes = [[n for n in tensor.shape[1:] if n > 1] for tensor in (logits, labels)]
    if sizes[0] != sizes[1] or logits.numel() != labels.numel() or not labels.dim():
        refuse_labels("binary_nll", "one logit for each label", logits, labels)
    rows = torch.arange(len(labels), device=labels.device).repeat_interleave(labels[0].numel())
    flat, targets = logits.flatten(), labels.flatten()
    if targets.is_floating_point():
        check_probabilities("binary_nll", targets)
        targets = torch.stack([1 - targets, targets], dim=1)
    else:
        targets = targets.long()
        check_range("binary_nll", targets, 2)
    return Predictions(torch.stack([torch.zeros_like(flat), flat], dim=1), targets, rows, len(labels))


@from_predictions
def segmentation_nll(module: LightningModule, batch: Batch) -> Predictions:
    """Negative log-likelihood of the class of each pixel, summed over the pixels of a row.

    Pixels with the label -100, and with 255 in a mask of bytes, do not count.

    Args:
        module: Any LightningModule whose ``forward`` returns logits ``(B, K, H, W)``, with any number of dimensions
            after the classes, or an object with ``.logits``.
        batch: As in [`classifier_nll`][lightning_unlearn.classifier_nll], with class numbers ``(B, H, W)`` or
            ``(B, 1, H, W)``.

    Returns:
        Shape ``(B,)``, fp32, in nats.

    Raises:
        MisconfigurationException: If logits and labels have other shapes, or labels are no class numbers.
    """
    logits, labels = read_classifier("segmentation_nll", module, batch)
    if labels.dim() == logits.dim() and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    fits = logits.dim() > 2 and logits.shape[1] >= 2 and labels.shape == (logits.shape[0], *logits.shape[2:])
    if not fits or labels.is_floating_point():
        refuse_labels(
            "segmentation_nll", "class numbers (B, H, W) and logits (B, K, H, W) of K >= 2 classes", logits, labels
        )
    counts = labels != IGNORE_INDEX if labels.dtype != torch.uint8 else labels != _NO_PIXEL
    chosen = labels[counts].long()
    check_range("segmentation_nll", chosen, logits.shape[1])
    return Predictions(logits.movedim(1, -1)[counts], chosen, counts.nonzero()[:, 0], len(labels))


@from_predictions
def soft_label_nll(module: LightningModule, batch: Batch) -> Predictions:
    r"""Cross-entropy with a distribution over classes, such as that of several annotators, a teacher or mixed rows.

    $$\ell = -\sum_k t_k \log p_k$$

    One-hot labels are a special case. Methods that need one class of a row take the likeliest.

    Args:
        module: Any LightningModule whose ``forward`` returns logits ``(B, K)``, or an object with ``.logits``.
        batch: As in [`classifier_nll`][lightning_unlearn.classifier_nll], with labels $t$ of shape ``(B, K)``, not
            negative and with the sum 1 in each row.

    Returns:
        Shape ``(B,)``, fp32, in nats.

    Raises:
        MisconfigurationException: If logits and labels don't have one shape, or a row of labels is no distribution.
    """
    logits, labels = read_classifier("soft_label_nll", module, batch)
    if logits.dim() != 2 or logits.shape[1] < 2 or labels.shape != logits.shape:
        refuse_labels("soft_label_nll", "distributions (B, K) and logits (B, K) of K >= 2 classes", logits, labels)
    labels = labels.float()
    check_probabilities("soft_label_nll", labels, sums_to_1=True)
    return Predictions(logits, labels, torch.arange(len(labels), device=labels.device), len(labels))


CLASS_SCORES = (classifier_nll, binary_nll, segmentation_nll, soft_label_nll)
"""Scores that read classes, whatever the module's own loss is."""
