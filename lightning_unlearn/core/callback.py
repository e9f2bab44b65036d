"""Base class of unlearning callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.hooks import RemovableHandle

from lightning_unlearn.core.accumulation import full_window
from lightning_unlearn.core.batch_norm import freeze_lone_rows, has_batch_statistics
from lightning_unlearn.core.batches import rows_in
from lightning_unlearn.core.checks import strategy, trainer_optimizes
from lightning_unlearn.core.distributed import all_true, checksums, local_tensor, mean_over_ranks
from lightning_unlearn.core.interruption import LastFinite, tell_checkpoint
from lightning_unlearn.core.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    overrides,
)
from lightning_unlearn.core.own_loss import warn_of_another_loss
from lightning_unlearn.core.own_training import OwnTraining, SkippedBatch, own_step
from lightning_unlearn.core.reference import Needs, Reference, ReferenceCallback
from lightning_unlearn.core.resolution import warn_below_resolution
from lightning_unlearn.core.resume import (
    callbacks_of,
    mark,
    marker,
    refuse_live_weights_without_average,
    restore_place,
    rewind_window,
)
from lightning_unlearn.core.retention import begin, record_checkpoints, release, resume, seal
from lightning_unlearn.core.rows import RowLoader, row_loader, written_date
from lightning_unlearn.core.run_checks import (
    check_date,
    check_moved,
    check_optimizers,
    check_roles,
    check_sharded,
    never_started,
)
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, training_step_loss
from lightning_unlearn.core.smoothing import Smoothing, Term
from lightning_unlearn.core.transfer import Patches, patch_transfer
from lightning_unlearn.core.trend import Trend

__all__ = ["Needs", "Reference", "UnlearnCallback", "objective_score"]


class UnlearnCallback(ReferenceCallback, ABC):
    """Base class of unlearning callbacks: replaces ``training_step`` on the module instance while ``fit`` runs.

    The module's class, checkpoint keys, hooks, optimizers, validation and logging do not change, and its checkpoints
    load into its own class. A run has exactly one such callback; masks and monitors are added beside it. The training
    batch is a dict with the rows of each role, ``{"forget": ..., "retain": ...}``.

    A subclass supplies ``step``, and states in ``needs`` what it reads. Everything that ``step`` returns is logged as
    ``unlearn/<name>``. State of its own is made in ``begin`` or restored in ``restore``; exactly one of them is called.

    Args:
        score: Reads the per-example negative log-likelihood off the module.
        reference: Where an objective needs the original model: ``"cache"`` reads one likelihood a row before the
            first step and needs rows with a stable ``index``; ``"snapshot"`` keeps the starting values of the weights
            that train and exchanges them in; ``"auto"`` takes the cache where rows have an ``index``, unless there are
            more than 16 answers a forget row to read, as with a long list of refusals.

    Raises:
        MisconfigurationException: On manual optimization, an unsupported strategy, a second objective, or a run that
            made no update.
        FloatingPointError: If the loss or a gradient is not finite. The weights are then those of the last finite
            step, and are saved as ``last-finite.ckpt`` where checkpoints are enabled.
    """

    makes_steps = True
    """Whether the run makes training steps."""
    not_averaged: ClassVar[str] = ""
    """Why the weights of several steps have no meaningful mean, as a verb phrase; empty if they have one."""
    fills_windows = True
    """Whether an incomplete accumulation window at the end of an epoch takes the mean over its batches."""
    separable = False
    """Whether the loss has a separate forget term, which `step` passes through `smoothed`."""
    inseparable: ClassVar[str] = "has none that stands apart from what is to be kept"
    """Why there is no separate forget term, as a verb phrase."""
    smoothing: Smoothing | None = None
    """The callback that smooths the forget term in the current run."""

    def __init__(self, score: Score, reference: Reference = "auto") -> None:
        if self.needs.per_example and score is training_step_loss:
            raise ValueError(
                f"{type(self).__name__} weighs each example by its own likelihood, but training_step_loss gives one "
                "number a batch. Use classifier_nll, causal_lm_nll or your own score, or take GradDiff."
            )
        super().__init__(score, reference)
        self._steps = 0
        self._patches = Patches()
        self._own: OwnTraining | None = None
        self._date: str | None = None
        self._started: int | None = None
        self._was_resumed = False
        self._trend = Trend(())
        self._checksums: dict[str, float] = {}
        self._keeps_gradients = False
        self._finite = LastFinite(())
        self._lone_rows: list[RemovableHandle] = []

    rises: ClassVar[tuple[str, ...]] = ()
    """Losses that are followed from epoch to epoch, see `Trend`."""

    @abstractmethod
    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss of one training batch and its parts.

        Args:
            module: The user's module.
            batch: The rows of each role.

        Returns:
            ``{"loss": scalar, ...}``; the loss carries gradients.
        """

    # ---- what subclasses read with -----------------------------------------------------------------------------

    def smoothed(self, module: LightningModule, term: Term) -> dict[str, Tensor]:
        """The forget term and its parts, smoothed over the weights where the run has a callback for that.

        `step` calls it after reading the original model and before building the graph of another term, since the
        weights change in between. It adds ``"loss"`` to the total as it is.

        Args:
            module: The user's module.
            term: Evaluates the forget term; the loss has its own weight in it.
        """
        return term() if self.smoothing is None else self.smoothing.smoothed(module, term)

    def by_term(
        self, module: LightningModule, terms: Callable[[Sequence[str]], dict[str, Tensor]], roles: Sequence[str]
    ) -> dict[str, Tensor]:
        """The terms of several roles, read together; a smoothed forget term is read first and by itself.

        Args:
            module: The user's module.
            terms: Evaluates the terms of some roles; gives ``{"loss": their sum, parts...}``.
            roles: Roles that have a term; ``"forget"`` is the one to be smoothed.
        """
        if self.smoothing is None or "forget" not in roles:
            return terms(roles)
        forget, others = self.smoothed(module, lambda: terms(("forget",))), [r for r in roles if r != "forget"]
        if not others:
            return forget
        kept = terms(others)
        return {**forget, **kept, "loss": forget["loss"] + kept["loss"]}

    def row_loaders(self, trainer: Trainer) -> dict[str, RowLoader]:
        """Loaders that give the rows of each role once and in order, the same on every process.

        Raises:
            MisconfigurationException: If a role has no rows, or its loader can't be read row by row.
        """
        loaders = {role: row_loader(trainer.train_dataloader, role) for role in self.needs.roles}
        readable = {role: loader for role, loader in loaders.items() if loader is not None}
        missing = sorted(loaders.keys() - readable.keys())
        if missing:
            raise MisconfigurationException(
                f"{type(self).__name__} reads the {missing} rows before training, but the run has none. Pass "
                "trainer.fit(module, {'forget': ..., 'retain': ...}) with a loader for each."
            )
        return readable

    @staticmethod
    def token_mean(values: Tensor, length: Tensor) -> Tensor:
        """Mean over the tokens of all processes: averaging this over ranks gives the mean of the joined batch."""
        return values.sum() / mean_over_ranks(length.sum())

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run and take over ``training_step``."""
        if stage != "fit":
            return
        self._check(trainer, pl_module)
        self.go_on(trainer, pl_module)
        record_checkpoints(trainer)
        self._steps, self._started = 0, None

        # A plain function: copies of the module (EMA) keep it as it is. Made here and not earlier, as it can't be
        # pickled for processes that are spawned.
        def training_step(*given: Any, **named: Any) -> Any:
            if not trainer.training:  # a validation_step calls it
                return own_step(pl_module)(*given, **named)
            try:
                return self._training_step(trainer, pl_module, *given, **named)
            except SkippedBatch:
                return None

        training_step.replaced = vars(pl_module).get("training_step")  # type: ignore[attr-defined]

        self._keeps_gradients = _watches_zero_grad(trainer, pl_module)
        self._patches = Patches()
        patch_transfer(self._patches, trainer, pl_module, self.needs.roles)
        self._patches.set(pl_module, "training_step", training_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make or restore the reference, in the first hook after loading a checkpoint under every strategy."""
        if self.makes_steps:
            check_optimizers(type(self).__name__, trainer, pl_module)
        begin(trainer)
        self._started = trainer.global_step
        self._trend = Trend(self.rises, nats=self.score is not training_step_loss)
        self._checksums = checksums(pl_module)
        self._joinable = not any(has_batch_statistics(child) for child in pl_module.modules())
        check_sharded(trainer, pl_module)
        for hook in self._lone_rows:  # of the trial steps of a tuner
            hook.remove()
        self._lone_rows = freeze_lone_rows(pl_module)
        self._finite = LastFinite(pl_module.modules())
        if self.makes_steps and self._own is None:
            calls = len(self.needs.roles) if self.score is training_step_loss else 0
            self._own = OwnTraining(type(self).__name__, trainer, pl_module, calls)
            self._own.patch(self._patches, trainer)
        self.caches, self.snapshot = {}, None
        self._date = written_date(trainer.train_dataloader)
        restore_place(trainer)
        self._was_resumed = self._state is not None
        # A reference made on resuming would be the half-unlearned model.
        if self._state is None:
            self._make_reference(trainer, pl_module)
        else:
            check_date(self._state.get("date", self._date), self._date)
            self._restore_reference(self._state, pl_module)
        warn_below_resolution(trainer)
        super().on_train_start(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop before a gradient that is not finite reaches the weights."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # overflow is the gradient scaler's business: it skips the step and lowers its scale
        gradients = [local_tensor(p.grad) for p in pl_module.parameters() if p.grad is not None]
        if gradients and not all_true(get_total_norm(gradients).isfinite()):
            self._finite.stop(type(self).__name__, trainer, "a gradient is not finite")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise an error if nothing was unlearned, and remove the original model from the checkpoints."""
        name = type(self).__name__
        if self._started is None:
            raise never_started(name, trainer)
        updates = trainer.global_step - self._started if self._steps else 0
        check_moved(name, trainer, pl_module, self._checksums, updates if self.makes_steps else None)
        self._trend.warn(name)
        release(trainer)
        super().on_fit_end(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give ``training_step`` back."""
        trainer.__dict__.pop("save_checkpoint", None)
        self._give_back(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give ``training_step`` back, so that the module can be tested after a crash."""
        release(trainer, interrupted=True)
        if self._started is not None:
            tell_checkpoint(trainer, exception)
        self._give_back(pl_module)

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The method's name and the reference."""
        return {
            "method": type(self).__name__,
            "caches": {role: cache.state_dict() for role, cache in self.caches.items()},
            "snapshot": self.snapshot.state_dict() if self.snapshot is not None else None,
            "date": self._date,
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint, rewind it to whole updates, and leave out what no file may keep after the run."""
        rewind_window(trainer, checkpoint)
        mark(checkpoint, type(self).__name__, trainer.global_step)
        seal(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that was not unlearning with this method, or has ended.

        Raises:
            MisconfigurationException: If the checkpoint has no state for this callback, no longer the original model
                that it needs, or averaged weights without a callback that averages.
        """
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        refuse_live_weights_without_average(trainer, checkpoint)
        if self._fresh:
            return
        resume(trainer, self, checkpoint)
        if trainer.state.fn != "fit" or self.state_key in checkpoint.get("callbacks", {}):
            return
        run = marker(checkpoint)
        was = f"of a run with {run['method']}" if run else "not of an unlearning run"
        raise MisconfigurationException(
            f"ckpt_path continues a run, but this checkpoint is {was}, so {type(self).__name__} has no state in it. "
            f"To start unlearning from its weights, load them first ({type(pl_module).__name__}.load_from_checkpoint) "
            "and call fit without ckpt_path."
        )

    # ---- internals ---------------------------------------------------------------------------------------------

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        name = type(self).__name__
        objectives = [type(callback).__name__ for callback in callbacks_of(trainer, UnlearnCallback)]
        if len(objectives) > 1:
            raise MisconfigurationException(
                f"A run has one unlearning objective, but got {objectives}. Keep one of them; masks and monitors may "
                "stay beside it."
            )
        trainer_optimizes(name, module)
        strategy(name, trainer)
        if self.needs.reference_logits and not isinstance(self.score, PredictionScore):
            raise MisconfigurationException(
                f"{name} compares logits with the original model, but its score only gives likelihoods. "
                "Use classifier_nll or causal_lm_nll, or decorate a function that returns Predictions with "
                "from_predictions."
            )

    def _training_step(
        self, trainer: Trainer, module: LightningModule, batch: dict[str, Batch], batch_idx: int
    ) -> Tensor:
        check_roles(type(self).__name__, self.needs.roles, batch)
        if self._started is None:  # a tuner makes trial steps before the run, without callbacks
            self.on_train_start(trainer, module)
        if self.snapshot is not None:
            self.snapshot.follow(module)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._finite.keep()
            if not self._keeps_gradients:
                # Lightning drops the last gradients after the forward pass, which would need their memory.
                for optimizer in trainer.optimizers:
                    optimizer.zero_grad()
        if self.needs.reference_nll and self._steps == 0 and not self._was_resumed:
            self._check_drift(module, {role: batch[role] for role in self.needs.reference_nll})
        if self._steps == 0 and trainer.global_step == 0:
            role = "retain" if "retain" in self.needs.roles else self.needs.roles[0]
            warn_of_another_loss(type(self).__name__, module, self.score, batch[role])
        with nullcontext() if self._own is None else self._own.apart():
            parts = self.step(module, batch)
        # One reduction a step: a loss that is not finite on any process is not finite in the mean either.
        means = mean_over_ranks(torch.stack([value.detach().float() for value in parts.values()]))
        logged = dict(zip(parts, means, strict=True))
        if not logged["loss"].isfinite():
            values = ", ".join(f"{name}={value.item():.6g}" for name, value in parts.items())
            self._finite.stop(type(self).__name__, trainer, f"the loss is not finite ({values})")
        self._steps += 1
        self._trend.add(trainer.current_epoch, logged)
        if self._own is not None:
            self._own.step(batch)
        module.log_dict(
            {f"unlearn/{name}": value for name, value in logged.items()},
            prog_bar=True,
            batch_size=rows_in(batch[self.needs.roles[0]]),
        )
        loss = parts["loss"] if self.smoothing is None else self.smoothing.deposited(parts["loss"])
        return loss * full_window(trainer, module, batch_idx) if self.fills_windows else loss

    def _give_back(self, module: LightningModule) -> None:
        self._patches.undo()
        self._own = None
        for handle in self._lone_rows:
            handle.remove()
        self._lone_rows = []


def _watches_zero_grad(trainer: Trainer, module: LightningModule) -> bool:
    """Whether someone's own hook may look at gradients until Lightning drops them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(
        overrides(module, hook, "LightningModule") for hook in ("on_before_zero_grad", "optimizer_zero_grad")
    ) or any(overrides(callback, "on_before_zero_grad", "Callback") for callback in callbacks)


def objective_score(method: str, trainer: Trainer) -> Score:
    """The score of the run's objective, for callbacks that run beside it.

    Raises:
        MisconfigurationException: If the run has no objective.
    """
    objectives = callbacks_of(trainer, UnlearnCallback)
    if not objectives:
        raise MisconfigurationException(
            f"{method} reads the model by the objective's score, but the run has no unlearning callback. Add one, or "
            "pass score=, such as causal_lm_nll or classifier_nll."
        )
    return objectives[0].score
