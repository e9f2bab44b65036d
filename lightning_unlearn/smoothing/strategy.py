"""Base class of callbacks that smooth the forget term over the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.checks import strategy
from lightning_unlearn.core.distributed import local_tensor, mean_over_ranks, sum_over_ranks
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_unlearn.core.resume import ResumableCallback, callbacks_of
from lightning_unlearn.core.smoothing import Term
from lightning_unlearn.smoothing.forget_term import ForgetTerm, Gradients
from lightning_unlearn.smoothing.sharded import global_norm

__all__ = ["Smoothed", "SmoothingStrategy"]

_LEAST_SHARE = 0.5


class Smoothed(NamedTuple):
    """A smoothed forget term.

    Args:
        value: Its value, a scalar without graph.
        gradients: Its gradient, on each process that of its own rows where weights are whole.
        parts: What the objective logs of the forget term, as `Evaluation` has it.
        logged: Scalars to log as ``smooth/<name>``, each the mean over processes; the same names on every process.
    """

    value: Tensor
    gradients: Gradients
    parts: dict[str, Tensor]
    logged: dict[str, Tensor]


class SmoothingStrategy(ResumableCallback, ABC):
    r"""Base class of callbacks that smooth the forget term over the weights, so that small changes don't undo it.

    Works beside any objective with a separate forget term; a run has one at most. The gradient of the forget term is
    replaced by that of a smoothed term; the retain and refusal terms keep their gradients at the live weights. The
    module, its optimizer, accumulation of batches, clipping, mixed precision, masks and strategies (one device, DDP,
    FSDP2) work as without it, since the backward pass of the total loss adds the smoothed gradient. Accumulated batches
    are smoothed one by one.

    All passes of a step draw the same dropout masks. Only the pass at the live weights enters running statistics of
    batch normalization. Weights are restored bit for bit, also after an exception, so that no checkpoint holds others.
    If the score is the module's own ``training_step``, its logs are of the pass at the live weights, but its metrics
    see all passes.

    Logs ``smooth/<name>`` as the subclass says. ``unlearn/loss`` has the smoothed forget term in it.

    A subclass supplies `smooth`.

    Raises:
        MisconfigurationException: If the run has no objective, or one without a forget term, on a second such callback,
            on an unsupported strategy, or on a checkpoint of a run without this callback.

    Example:
        Two passes whose mean is taken: at the weights, and where all of them are a little larger.

        >>> class Larger(SmoothingStrategy):
        ...     def smooth(self, term):
        ...         here = term.gradient()
        ...         with term.at([1.01 * p for p in term.parameters]):
        ...             there = term.gradient()
        ...         pairs = zip(here.gradients, there.gradients)
        ...         mean = [None if a is None else (a + b) / 2 for a, b in pairs]
        ...         value = (here.value + there.value) / 2
        ...         return Smoothed(value, mean, here.parts, {"perturbed_loss": there.value})
        >>> Larger()  # doctest: +ELLIPSIS
        <...Larger object at ...>
    """

    sharded = True
    """Whether it works on weights that are sharded by ``ModelParallelStrategy`` (FSDP2)."""

    @abstractmethod
    def smooth(self, term: ForgetTerm) -> Smoothed:
        """Smooth the forget term of one batch.

        Args:
            term: The term as a function of the weights.

        Returns:
            Value and gradient of the smoothed term.
        """

    def check_rounding(self, term: ForgetTerm, values: Sequence[Tensor | None], length: float) -> None:
        """In the first step, warn where weights of low precision round most of a perturbation away.

        Args:
            term: The forget term.
            values: The perturbed weights, as passed to `ForgetTerm.at`.
            length: L2 norm of the perturbation as it should be.
        """
        if self._steps or all(p.dtype in (torch.float32, torch.float64) for p in term.parameters):
            return
        pairs = [(v, p.detach()) for v, p in zip(values, term.parameters, strict=True) if v is not None]
        moved = [local_tensor(v).float() - local_tensor(p).float() for v, p in pairs]
        total = global_norm(moved).square()
        if term.sharded:
            sum_over_ranks(total)
        share = total.sqrt().item() / length
        if not share >= _LEAST_SHARE:
            rank_zero_warn(
                f"{type(self).__name__} moves the weights by {share:.1%} of the length it is set to: the rest is lost "
                f"to the rounding of {pairs[0][1].dtype} weights. Use precision='bf16-mixed' or '32-true', which keep "
                "weights in fp32, or a larger perturbation."
            )

    # ---- what the objective calls ------------------------------------------------------------------------------

    def smoothed(self, module: LightningModule, term: Term) -> dict[str, Tensor]:
        """The parts of the forget term, with the smoothed loss, which carries no gradient."""
        forget = ForgetTerm(module.trainer, module, term)
        found = self.smooth(forget)
        self._steps += 1
        self._pending = [(p, g) for p, g in zip(forget.parameters, found.gradients, strict=True) if g is not None]
        if found.logged:
            means = mean_over_ranks(torch.stack([value.detach().float() for value in found.logged.values()]))
            module.log_dict({f"smooth/{name}": value for name, value in zip(found.logged, means, strict=True)})
        return {"loss": found.value.detach(), **found.parts}

    def deposited(self, loss: Tensor) -> Tensor:
        """The total loss, whose backward pass adds the smoothed gradient to that of the other terms."""
        pending, self._pending = self._pending, []
        if not pending:
            return loss
        parameters, gradients = zip(*pending, strict=True)
        return _Deposit.apply(loss, list(gradients), *parameters)

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    _objective: UnlearnCallback | None = None
    _pending: Sequence[tuple[nn.Parameter, Tensor]] = ()
    _steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run, and attach to its objective."""
        if stage != "fit":
            return
        self._objective = self._check(trainer, pl_module)
        self._objective.smoothing = self
        self._pending, self._steps = [], 0
        self.go_on(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise if nothing was smoothed."""
        super().on_fit_end(trainer, pl_module)
        if not self._steps:
            raise MisconfigurationException(
                f"{type(self).__name__} has smoothed nothing: {type(self._objective).__name__} made no step with a "
                "forget term. Check its weights and schedule, or leave the smoothing out."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach from the objective."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the objective, which may be in another run after a crash."""
        self._leave()

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The name of the strategy: what it draws is a function of its seed and the update."""
        return {"strategy": type(self).__name__}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that was not smoothed.

        Raises:
            MisconfigurationException: If the checkpoint has no state for this callback.
        """
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self.refuse_runs_without_it(trainer, pl_module, checkpoint)

    # ---- internals ---------------------------------------------------------------------------------------------

    def _check(self, trainer: Trainer, module: LightningModule) -> UnlearnCallback:
        name = type(self).__name__
        strategies = [type(callback).__name__ for callback in callbacks_of(trainer, SmoothingStrategy)]
        if len(strategies) > 1:
            raise MisconfigurationException(
                f"A run has one smoothing of its forget term, but got {strategies}. Keep one of them."
            )
        strategy(name, trainer, self.sharded, "differentiates twice")
        objectives = callbacks_of(trainer, UnlearnCallback)
        if not objectives:
            raise MisconfigurationException(
                f"{name} smooths the forget term of an objective, but the run has none. Add one, such as NPO()."
            )
        objective = objectives[0]
        if not objective.separable:
            raise MisconfigurationException(
                f"{name} smooths a forget term, but {type(objective).__name__} {objective.inseparable}. Take an "
                "objective with a forget term of its own, such as NPO, SimNPO or GradDiff, or leave the smoothing out."
            )
        for path, child in module.named_modules():
            if isinstance(child, (nn.Embedding, nn.EmbeddingBag)) and child.sparse:
                raise MisconfigurationException(
                    f"{name} can't smooth the sparse gradients of {path}. Make the embedding with sparse=False."
                )
        return objective

    def _leave(self) -> None:
        if self._objective is not None and self._objective.smoothing is self:
            self._objective.smoothing = None
        self._pending = []


class _Deposit(torch.autograd.Function):
    """The loss itself, with further gradients for some parameters in its backward pass.

    It is the first node of that pass, so that under FSDP2 these gradients are there before those of the other terms are
    added on another stream.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: nn.Parameter) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            local_tensor(gradient).mul_(scale)
        return scale, None, *gradients
