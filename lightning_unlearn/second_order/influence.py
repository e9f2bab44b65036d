"""Influence unlearning: one closed-form Newton step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.edit import Edit
from lightning_unlearn.core.gradients import sample_gradients, weight_gradients
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.rows import RowLoader, row_loader
from lightning_unlearn.core.samplers import chunked
from lightning_unlearn.core.scores import Batch, Score, causal_lm_nll, classifier_nll
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.functional.curvature.conjugate_gradient import conjugate_gradient
from lightning_unlearn.functional.curvature.woodfisher import woodfisher

__all__ = ["InfluenceUnlearning"]

Solver = Literal["woodfisher", "cg"]


class InfluenceUnlearning(Edit):
    r"""Influence unlearning: one Newton step that removes the forget rows from the training loss.

    $$\theta_u = \theta_o + \alpha\, (H + \lambda I)^{-1}\, \frac{1}{N} \nabla \sum_{i \in D_f} \ell_i(\theta_o)$$

    $H$ is the Hessian of the mean loss of the $N$ retain rows. Where the loss is quadratic and $\theta_o$ its minimum,
    $\theta_u$ is the model trained without the forget rows. $\ell_i$ is what ``score`` gives, the NLL of a row summed
    over its tokens. It is an edit: the run makes no update.

    Args:
        solver: ``"woodfisher"`` takes the empirical Fisher matrix of ``samples`` retain rows for $H$, and its exact
            inverse; ``"cg"`` solves with Hessian-vector products by conjugate gradients.
        damping: $\lambda > 0$, on the scale of the curvature of a row's loss.
        samples: Retain rows that make up $H$, drawn without replacement; ``None`` for all of them.
        step_size: $\alpha > 0$; the papers search for it.
        block_size: Most weights whose sample gradients are in memory together, ``samples`` numbers for each (at least
            those of one tensor). A smaller block runs the backward passes again for each block.
        vectorize: Take the sample gradients of the rows of a batch at once, which is many times faster. ``None`` does
            so with ``classifier_nll``; a score whose shapes depend on values, as ``causal_lm_nll``, can't.
        iterations: Most Hessian-vector products.
        tolerance: Residual, as a share of the right-hand side, at which conjugate gradients stop.
        score: Reads likelihoods off the module.
        seed: Chooses the retain rows.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[InfluenceUnlearning(damping=0.1)], logger=False, accelerator="cpu")

    References:
        Koh and Liang, *Understanding Black-box Predictions via Influence Functions*, arXiv:1703.04730.
        Singh and Alistarh, *WoodFisher: Efficient Second-Order Approximation for Neural Network Compression*,
        arXiv:2004.14340.
        Jia et al., *SOUL: Unlocking the Power of Second-Order Optimization for LLM Unlearning*, arXiv:2404.18239.
    """

    def __init__(
        self,
        solver: Solver = "woodfisher",
        damping: float = 1e-2,
        samples: int | None = 128,
        step_size: float = 1.0,
        block_size: int = 1 << 24,
        vectorize: bool | None = None,
        iterations: int = 100,
        tolerance: float = 1e-6,
        score: Score = causal_lm_nll,
        seed: int = 0,
    ) -> None:
        one_of("solver", solver, Solver)
        for name, value in (("damping", damping), ("step_size", step_size), ("tolerance", tolerance)):
            above(name, value, 0)
        for name, number in (("block_size", block_size), ("iterations", iterations), ("samples", samples)):
            at_least(name, 1 if number is None else number, 1)
        if vectorize and score is causal_lm_nll:
            raise ValueError(
                "vectorize=True runs the score of many rows at once, but causal_lm_nll chooses the supervised tokens "
                "of each row. Leave vectorize out, or pass a score with fixed shapes."
            )
        super().__init__(score)
        self.vectorize = score is classifier_nll if vectorize is None else vectorize
        self.solver, self.damping, self.samples, self.step_size = solver, damping, samples, step_size
        self.block_size, self.iterations, self.tolerance, self.seed = block_size, iterations, tolerance, seed

    def edit(self, module: LightningModule, forget: Iterable[Batch], retain: Iterable[Batch] | None = None) -> None:
        """Take the step.

        Args:
            module: Any LightningModule; its parameters that require gradients move.
            forget: Loads the rows to forget from a map-style dataset.
            retain: Loads the rows to keep.

        Raises:
            ValueError: If there are no retain rows, or they can't be read one by one.
            FloatingPointError: If the step is not finite. The weights are then as they were.
        """
        if retain is None:
            raise ValueError("InfluenceUnlearning takes the curvature of retain rows, but got none. Pass retain.")
        parameters = [p for p in module.parameters() if p.requires_grad]
        rows = self._rows(retain)
        with evaluating(module), torch.enable_grad():
            gradient = [g / rows.count for g in self._gradient(module, forget, parameters)]
            solve = self._woodfisher if self.solver == "woodfisher" else self._conjugate_gradient
            step = solve(module, rows, parameters, gradient)
        if not all(s.isfinite().all() for s in step):
            raise FloatingPointError(
                f"InfluenceUnlearning: the step is not finite. Raise damping, which is {self.damping}."
            )
        with torch.no_grad():
            for parameter, change in zip(parameters, step, strict=True):
                parameter.add_(change, alpha=self.step_size)

    def _gradient(
        self, module: LightningModule, loader: Iterable[Batch], parameters: list[nn.Parameter]
    ) -> list[Tensor]:
        """Gradient of the summed loss of all rows."""
        total = [torch.zeros_like(p) for p in parameters]
        for batch in loader:
            found = weight_gradients(self._loss(module, batch), parameters)
            torch._foreach_add_(total, found)
        return total

    def _woodfisher(
        self, module: LightningModule, retain: RowLoader, parameters: list[nn.Parameter], vector: list[Tensor]
    ) -> list[Tensor]:
        rows = retain.select(self._batches(retain) if self.vectorize else [[i] for i in self._chosen(retain)])
        gradients = _SampleGradients(self, module, rows, parameters, self.block_size)
        flat = [torch.cat([v.flatten() for v in vector[block]]) for block in gradients.blocks]
        solved = torch.cat(woodfisher(gradients, flat, damping=self.damping))
        return [s.view_as(v) for s, v in zip(solved.split([v.numel() for v in vector]), vector, strict=True)]

    def _conjugate_gradient(
        self, module: LightningModule, retain: RowLoader, parameters: list[nn.Parameter], vector: list[Tensor]
    ) -> list[Tensor]:
        batches = self._batches(retain)
        rows, count = retain.select(batches), sum(map(len, batches))

        @torch.enable_grad()
        def hessian(direction: list[Tensor]) -> list[Tensor]:
            total = [torch.zeros_like(p) for p in parameters]
            for batch in rows:
                with sdpa_kernel(SDPBackend.MATH):  # the other attention kernels have no second derivative
                    loss = self._loss(module, batch)
                    slopes = weight_gradients(loss, parameters, create_graph=True)
                    along = torch.stack([(g * d).sum() for g, d in zip(slopes, direction, strict=True)]).sum()
                    found = weight_gradients(along, parameters)
                torch._foreach_add_(total, found)
            return [t / count for t in total]

        return conjugate_gradient(
            hessian, vector, damping=self.damping, iterations=self.iterations, tolerance=self.tolerance
        )

    def _loss(self, module: LightningModule, batch: Batch) -> Tensor:
        return self.likelihood(module, transferred(module, batch)).sum()

    def _chosen(self, loader: RowLoader) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(loader.count, generator=generator)[: self.samples or loader.count].tolist()

    def _batches(self, loader: RowLoader) -> list[list[int]]:
        return chunked(self._chosen(loader), len(loader.chunks[0]))

    @staticmethod
    def _rows(loader: Any) -> RowLoader:
        rows = row_loader({"retain": loader}, "retain")
        if rows is None or not rows.count:
            raise ValueError(f"InfluenceUnlearning reads retain rows, but got none from {type(loader).__name__}.")
        return rows


class _SampleGradients:
    """The gradient of each row, for one block of parameters after the other. Only one block is kept."""

    def __init__(
        self,
        method: InfluenceUnlearning,
        module: LightningModule,
        rows: RowLoader,
        parameters: list[nn.Parameter],
        block_size: int,
    ) -> None:
        self.method, self.module, self.rows, self.parameters = method, module, rows, parameters
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.blocks: list[slice] = []
        start, filled = 0, 0
        for i, parameter in enumerate(parameters):
            if filled and filled + parameter.numel() > block_size:
                self.blocks.append(slice(start, i))
                start, filled = i, 0
            filled += parameter.numel()
        self.blocks.append(slice(start, len(parameters)))
        self._kept: tuple[slice, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[Tensor]:
        for block in self.blocks:
            if self._kept is None or self._kept[0] != block:
                self._kept = None  # before the next one is made
                self._kept = (block, self._read(block))
            yield self._kept[1]

    @torch.enable_grad()
    def _read(self, block: slice) -> Tensor:
        found = []
        for batch in self.rows:
            if self.method.vectorize:
                batch = transferred(self.module, batch)
                gradients = list(sample_gradients(self._nll, self.module, self.names[block], batch).values())
            else:
                loss = self.method._loss(self.module, batch)
                gradients = [g[None] for g in weight_gradients(loss, self.parameters[block])]
            found.append(torch.cat([g.flatten(1) for g in gradients], dim=1))
        return torch.cat(found)

    def _nll(self, module: LightningModule, row: Batch) -> Tensor:
        return self.method.likelihood(module, row).sum()
