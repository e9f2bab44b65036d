"""SSD: selective synaptic dampening."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_unlearn.core.checks import above
from lightning_unlearn.core.edit import Edit
from lightning_unlearn.core.lightning import LightningModule, move_data_to_device
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch, Score, classifier_nll
from lightning_unlearn.functional.classification.synaptic_dampening import synaptic_dampening

__all__ = ["SSD"]


class SSD(Edit):
    r"""Selective synaptic dampening: shrink the weights that matter far more to the forget rows than to all rows.

    $$\theta_i \leftarrow \min\Big(\lambda \frac{I_{D,i}}{I_{f,i}},\, 1\Big)\, \theta_i \quad \text{where } I_{f,i} >
    \alpha I_{D,i}, \qquad I_S = \frac{1}{|\mathcal B(S)|} \sum_{B \in \mathcal B(S)} \big(\nabla \ell_B\big)^2$$

    The importance is the mean over batches of the squared gradient of a batch's mean loss, in evaluation mode, as in
    the released code, and depends on the batch size. $D$ is forget and retain rows, in separate batches. Buffers, such
    as statistics of batch normalization, stay. It is an edit: the run makes no update. A fixed $\alpha$ can destroy a
    model on some classes: look at the retain accuracy.

    Args:
        alpha: How many times more important a weight must be $\alpha > 0$; 10 for a ResNet-18, 5 to 25 for a ViT.
        dampening: $\lambda > 0$; the smaller, the stronger.
        score: Reads likelihoods off the module.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SSD(alpha=10.0)], logger=False, accelerator="cpu")

    References:
        Foster et al., *Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening*,
        arXiv:2308.07707.
    """

    def __init__(self, alpha: float = 10.0, dampening: float = 1.0, score: Score = classifier_nll) -> None:
        super().__init__(score)
        self.alpha, self.dampening = above("alpha", alpha, 0), above("dampening", dampening, 0)

    def edit(self, module: LightningModule, forget: DataLoader, retain: DataLoader | None = None) -> None:
        """Dampen the weights.

        Args:
            module: Any LightningModule; its parameters that require gradients shrink.
            forget: Loads the rows to forget.
            retain: Loads the rows to keep.

        Raises:
            ValueError: If there are no retain rows.
            FloatingPointError: If an importance is not finite. The weights are then as they were.
        """
        if retain is None:
            raise ValueError("SSD compares the forget rows with all rows, but got no retain rows. Pass retain.")
        parameters = [p for p in module.parameters() if p.requires_grad]
        with evaluating(module), torch.enable_grad():
            forgotten, batches = self._squares(module, forget, parameters)
            retained, more = self._squares(module, retain, parameters)
        if not all(s.isfinite().all() for s in (*forgotten, *retained)):
            raise FloatingPointError(
                "SSD: a gradient is not finite, so no weight was changed. Run with precision='32-true', and check that "
                "the loss of every row is finite."
            )
        with torch.no_grad():
            for parameter, f, r in zip(parameters, forgotten, retained, strict=True):
                overall = (f + r) / (batches + more)
                parameter.mul_(synaptic_dampening(overall, f / batches, alpha=self.alpha, dampening=self.dampening))

    def _squares(
        self, module: LightningModule, loader: Iterable[Batch], parameters: list[nn.Parameter]
    ) -> tuple[list[Tensor], int]:
        """Sum of the squared gradients of the batches, and their number."""
        total, batches = [torch.zeros_like(p) for p in parameters], 0
        for batch in loader:
            loss = self.likelihood(module, move_data_to_device(batch, module.device)).mean()
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for square, gradient in zip(total, gradients, strict=True):
                square += gradient.square()
            batches += 1
        return total, batches
