"""Fisher forgetting: weight noise scaled by the Fisher information of the retain rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.classification.features import head_of
from lightning_unlearn.core.batches import row_count
from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.edit import Edit
from lightning_unlearn.core.gradients import rows_of, sample_gradients, weight_gradients
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, classifier_nll, prediction_score
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.functional.classification.fisher_forgetting import fisher_forgetting

__all__ = ["FisherForgetting"]


class FisherForgetting(Edit):
    r"""Fisher forgetting: adds noise to every weight, more to weights that matter less to the retain rows.

    $$\theta \leftarrow \theta + \sqrt{\alpha F^{-1}}\, \epsilon, \qquad
    F = \frac{1}{|D_r|} \sum_{x \in D_r} \sum_{y} p_y(x)\, \big(\nabla_\theta \log p_y(x)\big)^2$$

    $F$ is the diagonal of the Fisher matrix, a sum over all classes $y$, in evaluation mode. As in the released code,
    the variance is clipped, averaged and scaled, see
    [`fisher_forgetting`][lightning_unlearn.functional.classification.fisher_forgetting.fisher_forgetting]. Buffers,
    such as batch normalization statistics, do not change. This is an edit: the run makes no optimizer update.

    Args:
        alpha: Scale of the variance $\alpha > 0$; published values range from 1e-9 to 3e-6 and were found by search.
        forget_class: The class whose rows are all forgotten; its output weights are replaced by noise. ``None`` if
            individual rows are forgotten.
        parity: ``"released"`` squares the mean gradient of a batch, weighted by the batch's mean $p_y$, as the released
            code does, and depends on the batch size; its output layer is every tensor whose first dimension is the
            number of classes. ``None`` squares the gradient of each row, as in the formula; its output layer is the
            one that gives the logits.
        rows_at_once: Number of rows whose gradients are in memory at the same time.
        seed: Seed of the noise, which is the same on any number of processes.
        score: Reads predictions from the module.

    Raises:
        ValueError: If an argument is out of range or the score gives no logits.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[FisherForgetting(alpha=1e-7)], logger=False, accelerator="cpu")

    References:
        Golatkar et al., *Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks*,
        arXiv:1911.04933.
    """

    def __init__(
        self,
        alpha: float = 1e-6,
        forget_class: int | None = None,
        parity: Literal["released"] | None = None,
        rows_at_once: int = 32,
        seed: int = 0,
        score: Score = classifier_nll,
    ) -> None:
        super().__init__(prediction_score("FisherForgetting", score, "sums over the classes"))
        if forget_class is not None:
            forget_class = int(at_least("forget_class", forget_class, 0))
        self.alpha, self.forget_class, self.seed = above("alpha", alpha, 0), forget_class, seed
        self.parity = one_of("parity", parity, (None, "released"))
        self.rows_at_once = at_least("rows_at_once", rows_at_once, 1)

    def edit(self, module: LightningModule, forget: Iterable[Batch], retain: Iterable[Batch] | None = None) -> None:
        """Add the noise.

        Args:
            module: Any LightningModule; its parameters that require gradients change.
            forget: Not read.
            retain: Loads the retain rows.

        Raises:
            ValueError: If there are no retain rows, the model has no class ``forget_class``, or a row does not have
                exactly one prediction.
            FloatingPointError: If a gradient is not finite. The weights are then left unchanged.
        """
        if retain is None:
            raise ValueError("FisherForgetting takes the Fisher matrix of the retain rows, but got none. Pass retain.")
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
        count, classes, head = 0, 0, None
        squares = self._of_batches if self.parity == "released" else self._of_rows
        with evaluating(module), torch.enable_grad():
            for batch in retain:
                batch = transferred(module, batch)
                with torch.no_grad():
                    likelihood = self._log_likelihood(module, batch)
                if len(likelihood) != row_count(batch):
                    raise ValueError(
                        f"FisherForgetting needs one prediction a row, but the score gave {len(likelihood)} for "
                        f"{row_count(batch)} rows."
                    )
                classes = likelihood.shape[1]
                head = head if count else self._head(module, batch)
                if self.forget_class is not None and self.forget_class >= classes:
                    raise ValueError(f"forget_class is {self.forget_class}, but the model has {classes} classes.")
                count += 1 if self.parity == "released" else len(likelihood)
                for part in squares(module, batch, likelihood.exp(), parameters):
                    for name, value in part.items():
                        fisher[name] += value
        if not all(f.isfinite().all() for f in fisher.values()):
            raise FloatingPointError(
                "FisherForgetting: a gradient is not finite, so no weight was changed. Check that the logits of "
                "every retain row are finite."
            )
        generator = torch.Generator().manual_seed(self.seed)
        options = {"alpha": self.alpha, "classes": classes, "forget_class": self.forget_class}
        with torch.no_grad():
            for name, parameter in parameters.items():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                output = head if head is None else name.startswith(f"{head}.")
                parameter.copy_(fisher_forgetting(parameter, fisher[name] / count, noise, output=output, **options))  # type: ignore[arg-type]

    def _head(self, module: LightningModule, batch: Batch) -> str | None:
        """Name of the output layer, or ``None`` under the released code's rule or if no layer gives the logits."""
        assert isinstance(self.score, PredictionScore)
        if self.parity == "released":
            return None
        found = head_of(module, self.score, batch)
        return None if found is None else next(name for name, child in module.named_modules() if child is found[1])

    def _of_rows(
        self, module: LightningModule, batch: Batch, probabilities: Tensor, parameters: dict[str, nn.Parameter]
    ) -> Iterator[dict[str, Tensor]]:
        """For each part and class, the sum of the squared row gradients, weighted by the probability of the row."""
        parts = zip(rows_of(batch, self.rows_at_once), probabilities.split(self.rows_at_once), strict=True)
        for rows, weights in parts:
            for y in range(probabilities.shape[1]):

                def value(module: LightningModule, row: Batch, y: int = y) -> Tensor:
                    return self._log_likelihood(module, row)[:, y].sum()

                gradients = sample_gradients(value, module, parameters, rows)
                yield {n: torch.einsum("b,b...->...", weights[:, y], g.square()) for n, g in gradients.items()}

    def _of_batches(
        self, module: LightningModule, batch: Batch, probabilities: Tensor, parameters: dict[str, nn.Parameter]
    ) -> Iterator[dict[str, Tensor]]:
        """For each class, the square of the batch's mean gradient, weighted by its mean probability."""
        for value, weight in zip(self._log_likelihood(module, batch).mean(0), probabilities.mean(0), strict=True):
            gradients = weight_gradients(value, list(parameters.values()), retain_graph=True)
            yield {name: weight * g.square() for name, g in zip(parameters, gradients, strict=True)}

    def _log_likelihood(self, module: LightningModule, batch: Batch) -> Tensor:
        """Log-probability of each class for each row, shape ``(B, K)``."""
        assert isinstance(self.score, PredictionScore)
        return self.score.predictions(module, batch).logits.float().log_softmax(1)
