"""Accuracy on the retain and test sets, and error on the forget set, in percent."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lightning_unlearn.classification.metrics.checks import check_outputs

__all__ = ["RA", "TA", "UA", "accuracy", "unlearning_accuracy"]


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Share of rows whose largest logit is the label's, $\frac{100}{N}\,|\{i : \arg\max_k z_{ik} = y_i\}|$.

    Args:
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``.

    Returns:
        A scalar in [0, 100].

    Raises:
        ValueError: If there are no rows, a shape is wrong or a logit is not finite.

    Example:
        >>> import torch
        >>> accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
        tensor(75.)
    """
    check_outputs(logits, labels)
    return 100 * (logits.argmax(-1) == labels).float().mean()


def unlearning_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""UA, the error on the forget set, $100 - \mathrm{accuracy}(\theta_u, D_f)$; ideally that of the retrained model.

    Args:
        logits: Of the forget rows, shape ``(N, K)``.
        labels: Their true labels, shape ``(N,)``.

    Returns:
        A scalar in [0, 100].

    Raises:
        ValueError: If there are no rows, a shape is wrong or a logit is not finite.

    Example:
        >>> import torch
        >>> unlearning_accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
        tensor(25.)

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """
    return 100 - accuracy(logits, labels)


class RA(MulticlassAccuracy):
    r"""Accuracy on the retain set in percent, $\mathrm{RA} = \mathrm{accuracy}(\theta_u, D_r)$.

    In [0, 100]. Ideal is the value of the retrained model, which is near 100 only if that model fits its training rows.

    Raises:
        ValueError: If there are no rows, a shape is wrong or a logit is not finite.

    Example:
        >>> import torch
        >>> ra = RA()
        >>> ra.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
        >>> ra.compute()
        tensor(75.)

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """

    higher_is_better: bool | None = None  # type: ignore[assignment]
    plot_upper_bound = 100.0
    tp: Tensor
    fn: Tensor

    def __init__(self, **kwargs: Any) -> None:
        # The number of classes only matters for true negatives, which accuracy does not use.
        super().__init__(num_classes=2, average="micro", validate_args=False, **kwargs)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of logits ``(N, K)`` and labels ``(N,)``."""
        check_outputs(logits, labels)
        super().update(logits, labels)

    def compute(self) -> Tensor:
        """The percentage over all rows so far."""
        if self.tp + self.fn == 0:
            raise ValueError(f"{type(self).__name__} has seen no rows. Call update with the outputs of its set first.")
        return 100 * super().compute()


class TA(RA):
    r"""Accuracy on the test set in percent, $\mathrm{TA} = \mathrm{accuracy}(\theta_u, D_t)$.

    In [0, 100]. Ideal is the value of the retrained model. If a whole class is forgotten, leave that class out of the
    test set: the retrained model misclassifies all its rows.

    Raises:
        ValueError: If there are no rows, a shape is wrong or a logit is not finite.

    Example:
        >>> import torch
        >>> ta = TA()
        >>> ta.update(torch.eye(4), torch.tensor([0, 1, 2, 3]))
        >>> ta.compute()
        tensor(100.)

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """


class UA(RA):
    r"""Unlearning accuracy, the error on the forget set: $\mathrm{UA} = 100 - \mathrm{accuracy}(\theta_u, D_f)$.

    In percent. Ideal is the value of the retrained model, not a higher one: 100 if a whole class is forgotten, and
    about the test error if the forget rows were drawn at random.

    Raises:
        ValueError: If there are no rows, a shape is wrong or a logit is not finite.

    Example:
        >>> import torch
        >>> ua = UA()
        >>> ua.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
        >>> ua.compute()
        tensor(25.)

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """

    def compute(self) -> Tensor:
        """The percentage over all rows so far."""
        return 100 - super().compute()
