"""EraseDiff: erasure as a bilevel problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.distributed import mean_over_ranks
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.modes import without_gradients
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.denoising import Noised, anchor_output, denoising_loss, noised
from lightning_unlearn.diffusion.engine.draws import Draws, index_of_rows
from lightning_unlearn.diffusion.engine.model import alphas_bar, as_text_to_image, prediction_type
from lightning_unlearn.diffusion.injected_gradients import (
    check_gradients,
    gradients,
    inner_product,
    loss_with_gradient,
    trained,
)
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.ddim import prediction_target
from lightning_unlearn.functional.diffusion.erase_diff import MultiplierRule, erasediff_multiplier
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["EraseDiff"]

Target = Literal["anchor", "uniform"]


class EraseDiff(DiffusionObjective):
    r"""EraseDiff: keep the retain images, under the constraint that the forget images are forgotten.

    $$\min_\theta f(\theta) \quad\text{where}\quad q(\theta) = g(\theta) - g(\theta^K) \le 0, \qquad
    \theta \leftarrow \theta - \alpha\,(\nabla f + \lambda \nabla q)$$

    $f$ is the denoising loss of the retain images; $g = \|e_\theta(z_t, t, c_f) - e_u\|^2$ separates the forget images
    from their captions. $\theta^K$ comes from $K$ gradient steps on $g$, which are taken on the live weights and undone
    bit for bit before the update. As $g(\theta^K)$ is a constant, $\nabla q = \nabla g$: the inner steps estimate what
    is left to forget, and affect the update only with ``multiplier="value"``; with any other multiplier, save them with
    ``inner_steps=0``. The optimizer makes one update per batch.

    This is the paper's method on batches; all inner steps of a batch share the target at $\theta$. In the authors' code
    the inner loop runs for whole epochs, with the optimizer of the outer one, and restoring $\theta$ within it undoes
    outer updates.

    A batch has images and captions of both roles, see [`denoising_nll`][lightning_unlearn.denoising_nll].
    The cost is $K + 4$ forward passes of the UNet and $K + 2$ backward, one forward pass less where the target is
    uniform; without inner steps 3 and 2.

    Args:
        target: $e_u$. ``"anchor"``: the output of the model as it is, without gradient, for the row's anchor, which it
            has as ``anchor_input_ids (B, L)`` (the authors' code for Stable Diffusion); ``"uniform"``: what would be
            right for noise from $U[0, 1)$ (their earlier code).
        multiplier: $\lambda \ge 0$; or how to choose it in each step, see
            [`erasediff_multiplier`][lightning_unlearn.functional.diffusion.erase_diff.erasediff_multiplier]:
            ``"cosine"`` (their code), ``"norm"`` or ``"value"``.
        eta: $\eta \ge 0$ of that choice.
        inner_steps: $K \ge 0$.
        inner_lr: Step size of the inner steps, plain gradient descent.
        seed: Seed of the noise and of the noise levels.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: On sharded weights, ``precision="16-mixed"``, or rows without an anchor.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EraseDiff(multiplier="cosine")], logger=False, accelerator="cpu")

    References:
        Wu et al., *EraseDiff: Erasing Data Influence in Diffusion Models*, arXiv:2401.05779.
    """

    needs = Needs()
    inseparable = "weighs the forget term by the gradients of both terms, unless multiplier is a number above 0"

    def __init__(
        self,
        target: Target = "anchor",
        multiplier: float | MultiplierRule = 1.0,
        eta: float = 0.1,
        inner_steps: int = 2,
        inner_lr: float = 1e-2,
        seed: int = 0,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(seed)
        self.keep_reference = keep_reference
        self.target, self.eta = one_of("target", target, Target), at_least("eta", eta, 0)
        if isinstance(multiplier, str):
            one_of("multiplier", multiplier, MultiplierRule, hint="or a number of at least 0")
        else:
            at_least("multiplier", multiplier, 0)
        hint = "multiplier='value' reads what the inner steps leave to forget"
        self.inner_steps = at_least("inner_steps", inner_steps, 1 if multiplier == "value" else 0, hint=hint)
        self.multiplier, self.inner_lr = multiplier, above("inner_lr", inner_lr, 0)
        self.separable = not isinstance(multiplier, str) and multiplier > 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_gradients(trainer, type(self).__name__)
        super().setup(trainer, pl_module, stage)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss on one batch of images to forget and one to keep."""
        parameters, draws = list(trained(module).values()), self.draws(module)
        forget_rows, retain_rows = noised(module, batch["forget"], draws), noised(module, batch["retain"], draws, 1)
        if self.target == "uniform":
            target = self.uniform_output(module, batch["forget"], forget_rows, draws)
        else:
            target = anchor_output(module, "EraseDiff", batch["forget"], forget_rows)

        def forget_loss() -> Tensor:
            return denoising_loss(module, batch["forget"], forget_rows, target)

        # First of all: changing weights would spoil a graph that already holds them.
        nothing = torch.zeros((), device=module.device)
        reached = self.inner_value(parameters, forget_loss) if self.inner_steps else nothing
        if self.smoothing is not None and not isinstance(self.multiplier, str):
            return self._smoothed_step(module, forget_loss, reached, batch["retain"], retain_rows)
        retain = denoising_loss(module, batch["retain"], retain_rows)
        forget = forget_loss()
        gap = mean_over_ranks(forget - reached)
        if isinstance(self.multiplier, str):
            f, q = gradients(retain, parameters), gradients(forget, parameters)
            multiplier = erasediff_multiplier(
                inner_product(f, q),
                inner_product(f, f).sqrt(),
                inner_product(q, q).sqrt(),
                gap,
                rule=self.multiplier,
                eta=self.eta,
            )
            value = retain + multiplier * (forget - reached)
            loss = loss_with_gradient(value, parameters, [a + multiplier * b for a, b in zip(f, q, strict=True)])
        else:
            multiplier = torch.as_tensor(float(self.multiplier), device=module.device)
            loss = retain + multiplier * (forget - reached)
        parts = {"loss": loss, "retain": retain, "forget": forget, "multiplier": multiplier}
        return parts | ({"gap": gap} if self.inner_steps else {})

    def _smoothed_step(
        self, module: LightningModule, forget_loss: Callable[[], Tensor], reached: Tensor, batch: Batch, rows: Noised
    ) -> dict[str, Tensor]:
        assert not isinstance(self.multiplier, str)
        multiplier = reached.new_tensor(float(self.multiplier))

        def term() -> dict[str, Tensor]:
            forget = forget_loss()
            parts = {"gap": mean_over_ranks(forget - reached)} if self.inner_steps else {}
            return {"loss": multiplier * (forget - reached), "forget": forget, **parts}

        parts, retain = self.smoothed(module, term), denoising_loss(module, batch, rows)
        return {**parts, "loss": retain + parts["loss"], "retain": retain, "multiplier": multiplier}

    def uniform_output(self, module: LightningModule, batch: Batch, rows: Noised, draws: Draws) -> Tensor:
        r"""What a model would predict for the same images under noise from $U[0, 1)$."""
        model, shape = as_text_to_image(module), rows.latents.shape[1:]
        generators = [keyed_generator(draws.seed, 4, draws.batch, number) for number in index_of_rows(batch)]
        noise = torch.stack([torch.rand(*shape, generator=generator) for generator in generators])
        noise, share = noise.to(rows.latents), alphas_bar(model)[rows.timesteps]
        a, b = (s.sqrt()[:, None, None, None] for s in (share, 1 - share))
        kind = prediction_type(model)
        clean = rows.latents if kind == "epsilon" else a * rows.latents - b * rows.target
        return prediction_target(clean, noise, share, kind)

    def inner_value(self, parameters: Sequence[Tensor], loss: Callable[[], Tensor]) -> Tensor:
        r"""$g(\theta^K)$, without gradient; parameters are afterwards what they were, bit for bit."""
        start = [p.detach().clone() for p in parameters]
        try:
            for _ in range(self.inner_steps):
                downhill = gradients(loss(), parameters)
                with torch.no_grad():
                    _set(parameters, [p - self.inner_lr * g for p, g in zip(parameters, downhill, strict=True)])
            with without_gradients():
                return loss()
        finally:
            _set(parameters, start)


def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    torch.clear_autocast_cache()  # it holds casts of the weights as they were
