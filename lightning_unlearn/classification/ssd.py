"""Selective synaptic dampening (SSD)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import above
from lightning_unlearn.core.edit import Edit
from lightning_unlearn.core.gradients import weight_gradients
from lightning_unlearn.core.lightning import LightningModule, rank_zero_info, rank_zero_warn
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.rows import RowLoader, mixed_rows, row_loader
from lightning_unlearn.core.scores import Batch, Score, classifier_nll
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.functional.classification.synaptic_dampening import synaptic_dampening

__all__ = ["SSD"]


class SSD(Edit):
    r"""Selective synaptic dampening: shrinks the weights that matter far more to the forget rows than to all rows.

    $$\theta_i \leftarrow \min\Big(\lambda \frac{I_{D,i}}{I_{f,i}},\, 1\Big)\, \theta_i \quad \text{where } I_{f,i} >
    \alpha I_{D,i}, \qquad I_S = \frac{1}{|\mathcal B(S)|} \sum_{B \in \mathcal B(S)} \big(\nabla \ell_B\big)^2$$

    The importance is the mean over batches of the squared gradient of a batch's mean loss, in evaluation mode, as in
    the released code, and depends on the batch size. $D$ is the training set: forget and retain rows, shuffled together
    into mixed batches. Buffers, such as batch normalization statistics, do not change. This is an edit: the run makes
    no optimizer update. It warns if no weight was selected. A fixed $\alpha$ can destroy a model on some classes: check
    the retain accuracy.

    Args:
        alpha: Ratio of importances $\alpha > 0$ above which a weight is dampened; 10 for a ResNet-18, 5 to 25 for a
            ViT.
        dampening: $\lambda > 0$; smaller values dampen more.
        seed: Seed of the shuffle of $D$.
        score: Reads likelihoods from the module.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SSD(alpha=10.0)], logger=False, accelerator="cpu")

    References:
        Foster et al., *Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening*,
        arXiv:2308.07707.
    """

    def __init__(
        self, alpha: float = 10.0, dampening: float = 1.0, seed: int = 0, score: Score = classifier_nll
    ) -> None:
        super().__init__(score)
        self.alpha, self.dampening, self.seed = above("alpha", alpha, 0), above("dampening", dampening, 0), seed

    def edit(self, module: LightningModule, forget: Iterable[Batch], retain: Iterable[Batch] | None = None) -> None:
        """Dampen the weights.

        Args:
            module: Any LightningModule; its parameters that require gradients shrink.
            forget: Loads the forget rows.
            retain: Loads the retain rows.

        Raises:
            ValueError: If there are no retain rows.
            FloatingPointError: If an importance is not finite. The weights are then left unchanged.
        """
        if retain is None:
            raise ValueError("SSD compares the forget rows with all rows, but got no retain rows. Pass retain.")
        parameters = [p for p in module.parameters() if p.requires_grad]
        first, second = _rows("forget", forget), _rows("retain", retain)
        with evaluating(module), torch.enable_grad():
            forgotten = self._importance(module, forget, parameters)
            overall = self._importance(module, mixed_rows(first, second, self.seed), parameters)
        if not all(s.isfinite().all() for s in (*forgotten, *overall)):
            raise FloatingPointError(
                "SSD: a gradient is not finite, so no weight was changed. Run with precision='32-true', and check that "
                "the loss of every row is finite."
            )
        selected = sum(int((f > self.alpha * o).sum()) for f, o in zip(forgotten, overall, strict=True))
        self._report(selected, forgotten, overall)
        with torch.no_grad():
            for parameter, f, o in zip(parameters, forgotten, overall, strict=True):
                parameter.mul_(synaptic_dampening(o, f, alpha=self.alpha, dampening=self.dampening))

    def _importance(
        self, module: LightningModule, loader: Iterable[Batch], parameters: list[nn.Parameter]
    ) -> list[Tensor]:
        """Mean over batches of the squared gradient."""
        total, batches = [torch.zeros_like(p) for p in parameters], 0
        for batch in loader:
            loss = self.likelihood(module, transferred(module, batch)).mean()
            gradients = weight_gradients(loss, parameters)
            for square, gradient in zip(total, gradients, strict=True):
                square += gradient.square()
            batches += 1
        return [square / batches for square in total]

    def _report(self, selected: int, forgotten: list[Tensor], overall: list[Tensor]) -> None:
        count = sum(map(torch.numel, forgotten))
        if selected:
            rank_zero_info(f"SSD selected {selected:,} of {count:,} weights.")
            return
        ratios = [(f / o)[f > 0] for f, o in zip(forgotten, overall, strict=True)]
        largest = max((float(ratio.max()) for ratio in ratios if len(ratio)), default=0.0)
        rank_zero_warn(
            f"SSD changed nothing: with alpha={self.alpha:g} none of {count:,} weights is selected. The forget rows "
            f"need a weight at most {largest:.3g} times as much as all rows do. Choose a smaller alpha."
        )


def _rows(role: str, loader: Any) -> RowLoader:
    rows = row_loader({role: loader}, role)
    if rows is None or not rows.count:
        raise ValueError(f"SSD reads {role} rows, but got none from {type(loader).__name__}.")
    return rows
