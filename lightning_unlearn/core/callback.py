"""Base class of unlearning callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from lightning_unlearn.core.checks import function, one_of, strategy, trainer_optimizes
from lightning_unlearn.core.distributed import all_true, local_tensor, mean_over_ranks
from lightning_unlearn.core.lightning import (
    MODEL_PARALLEL,
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    overrides,
    rank_zero_warn,
)
from lightning_unlearn.core.modes import without_gradients
from lightning_unlearn.core.reading import Reading, read, row_count
from lightning_unlearn.core.reference import CachedReference, SnapshotReference
from lightning_unlearn.core.resume import ResumableCallback, callbacks_of, mark, marker
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, training_step_loss

__all__ = ["Needs", "Reference", "UnlearnCallback", "objective_score"]

Reference = Literal["auto", "cache", "snapshot"]

_MAKERS = {
    "idk": "data module that gives refusals to the forget questions, such as LanguageDataModule",
    "alternate": "data module that gives alternate answers, such as LanguageDataModule after generate_alternates",
}
_CACHED_ANSWERS = 16  # about as often as a run visits a row; not its epochs, since a resumed run may have other ones
_REFERENCE_DRIFT = 1e-2  # nats; padding and kernels move a likelihood by less, dropout by much more


@dataclass(frozen=True)
class Needs:
    """What an objective reads of the rows of a run and of the starting model.

    Args:
        roles: Rows that every training batch must have.
        per_example: Whether the loss is non-linear in each row's likelihood, so that one number a batch won't do.
        logits: Whether it reads the logits of the forget rows.
        reference_nll: Roles whose likelihoods it compares with those of the starting model.
        reference_logits: Roles on whose rows it runs the starting model at each step.
        snapshot: Whether it needs the starting weights for anything else.
    """

    roles: tuple[str, ...] = ("forget", "retain")
    per_example: bool = False
    logits: bool = False
    reference_nll: tuple[str, ...] = ()
    reference_logits: tuple[str, ...] = ()
    snapshot: bool = False


class UnlearnCallback(ResumableCallback, ABC):
    """Base class of unlearning callbacks: replaces ``training_step`` on the module instance while ``fit`` runs.

    The module's class, its checkpoint keys, hooks, optimizers, validation and logging stay what they are; its
    checkpoints load into its own class. A run has exactly one such callback; masks and monitors stack beside it.
    The training batch is a dict with the rows of each role, ``{"forget": ..., "retain": ...}``.

    A subclass supplies ``step``, and states in ``needs`` what it reads. Everything that ``step`` returns is logged as
    ``unlearn/<name>``. State of its own is made in ``begin`` or restored in ``restore``; exactly one of them is called.

    Args:
        score: Reads the per-example negative log-likelihood off the module.
        reference: Where an objective needs the starting model: ``"cache"`` reads one likelihood a row before the
            first step and needs rows with a stable ``index``; ``"snapshot"`` keeps the starting values of the weights
            that train and exchanges them in; ``"auto"`` takes the cache where rows have an ``index``, unless there are
            more than 16 answers a forget row to read, as with a long list of refusals.

    Raises:
        MisconfigurationException: On manual optimization, an unsupported strategy, a second objective, or a run that
            made no update.
        FloatingPointError: If the loss or a gradient is not finite. The weights are then those of the last finite
            step, and are saved as ``last-finite.ckpt`` where checkpoints are enabled.
    """

    needs = Needs()
    """What the objective reads; a constructor may refine it."""

    def __init__(self, score: Score, reference: Reference = "auto") -> None:
        if self.needs.per_example and score is training_step_loss:
            raise ValueError(
                f"{type(self).__name__} weighs each example by its own likelihood, but training_step_loss gives one "
                "number a batch. Use classifier_nll, causal_lm_nll or your own score, or take GradDiff."
            )
        self.score = function("score", score, "(module, batch) -> NLL of shape (B,)")
        self.reference = one_of("reference", reference, Reference)
        self.caches: dict[str, CachedReference] = {}
        self.snapshot: SnapshotReference | None = None
        self._steps = 0
        self._patch: Any = None
        self._shadowed: Any = None
        self._joinable = True
        self._keeps_gradients = False
        self._statistics: list[tuple[Tensor, Tensor]] = []

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

    def row_loaders(self, trainer: Trainer) -> dict[str, DataLoader]:
        """For each role a loader of its rows, each once and in order, the same on every process.

        Raises:
            MisconfigurationException: If rows can't be read one by one.
        """
        loaders = {role: row_loader(trainer.train_dataloader, role) for role in self.needs.roles}
        readable = {role: loader for role, loader in loaders.items() if loader is not None}
        missing = sorted(loaders.keys() - readable.keys())
        if missing:
            raise MisconfigurationException(
                f"{type(self).__name__} reads the {missing} rows one by one, but the run has none, or they are of an "
                "iterable dataset. Pass trainer.fit(module, {'forget': ..., 'retain': ...}) with map-style datasets."
            )
        return readable

    def read(self, module: LightningModule, batches: Sequence[Batch], logits: bool = False) -> list[Reading]:
        """Read several roles off the module, in one forward pass wherever their rows can be joined.

        Args:
            module: The user's module.
            batches: Rows of each role.
            logits: Whether to return the predictions too; needs a `PredictionScore`.

        Returns:
            A reading for each role.
        """
        return read(self.likelihood, module, batches, logits, self._joinable)

    @property
    def likelihood(self) -> Score:
        """The score, checked to give one value a row where the objective needs that."""
        return self.score if isinstance(self.score, PredictionScore) else self._checked_score

    def _checked_score(self, module: LightningModule, batch: Batch) -> Tensor:
        nll = self.score(module, batch)
        if nll.dim() != 1 or (self.needs.per_example and len(nll) != row_count(batch)):
            raise ValueError(
                f"score returned shape {tuple(nll.shape)} for {row_count(batch)} rows; {type(self).__name__} needs "
                "one negative log-likelihood a row, shape (B,)."
            )
        return nll

    def reference_nll(self, module: LightningModule, rows: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Likelihoods of rows under the starting model, by role, each of shape ``(B,)`` and without gradient."""
        if self.caches:
            return {role: self.caches[role](batch) for role, batch in rows.items()}
        assert self.snapshot is not None
        with self.snapshot.active(module):
            readings = self.read(module, list(rows.values()))
        return {role: reading.nll for role, reading in zip(rows, readings, strict=True)}

    def reference_predictions(self, module: LightningModule, batch: Batch) -> Predictions:
        """Logits of the starting model at the supervised positions of a batch, without gradient."""
        assert self.snapshot is not None
        assert isinstance(self.score, PredictionScore)
        with self.snapshot.active(module):
            return self.score.predictions(module, batch)

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
        self._steps = 0

        # A plain function: copies of the module (EMA) keep it as it is. Made here and not earlier, as it can't be
        # pickled for processes that are spawned.
        def training_step(batch: dict[str, Batch], batch_idx: int) -> Tensor:
            return self._training_step(trainer, pl_module, batch, batch_idx)

        self._keeps_gradients = _watches_zero_grad(trainer, pl_module)
        self._shadowed = pl_module.__dict__.get("training_step")
        self._patch = pl_module.training_step = training_step  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make or restore the reference: the first hook that comes after the checkpoint for every strategy."""
        self._joinable = not any(isinstance(child, _BatchNorm) for child in pl_module.modules())
        self._check_sharded(trainer, pl_module)
        self._statistics = [
            (buffer, buffer.clone())
            for child in pl_module.modules()
            if isinstance(child, _NormBase)
            for buffer in child.buffers(recurse=False)
        ]
        self.caches, self.snapshot = {}, None
        # A reference made on resuming would be the half-unlearned model.
        if self._state is None:
            self._make_reference(trainer, pl_module)
        else:
            self._restore_reference(self._state, pl_module)
        super().on_train_start(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop before a gradient that is not finite reaches the weights."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # overflow is the gradient scaler's business: it skips the step and lowers its scale
        gradients = [local_tensor(p.grad) for p in pl_module.parameters() if p.grad is not None]
        if gradients and not all_true(get_total_norm(gradients).isfinite()):
            self._stop(trainer, "a gradient is not finite")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise if nothing was unlearned."""
        if self._steps == 0 and trainer.global_step == 0:
            raise MisconfigurationException(
                f"{type(self).__name__} ran 0 updates: the module that went in is the module that came out. Check "
                "that the forget loader is not empty, that max_epochs, max_steps and limit_train_batches are not 0, "
                "and that nothing else replaces training_step."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give ``training_step`` back."""
        self._give_back(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give ``training_step`` back, so that the module can be tested after a crash."""
        self._give_back(pl_module)

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The method's name and the reference."""
        return {
            "method": type(self).__name__,
            "caches": {role: cache.state_dict() for role, cache in self.caches.items()},
            "snapshot": self.snapshot.state_dict() if self.snapshot is not None else None,
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint as one of an unlearning run."""
        mark(checkpoint, type(self).__name__, trainer.global_step)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that was not unlearning with this method.

        Raises:
            MisconfigurationException: If the checkpoint has no state for this callback.
        """
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
                f"{name} compares logits with the starting model, but its score only gives likelihoods. "
                "Use classifier_nll or causal_lm_nll, or decorate a function that returns Predictions with "
                "from_predictions."
            )

    def _check_sharded(self, trainer: Trainer, module: LightningModule) -> None:
        if not isinstance(trainer.strategy, MODEL_PARALLEL) or trainer.world_size == 1:
            return
        if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            raise MisconfigurationException(
                f"ModelParallelStrategy leaves it to the module to share its weights among {trainer.world_size} "
                f"processes, but {type(module).__name__} is not taken apart: each process would train a model of its "
                "own. Apply fully_shard or parallelize_module in configure_model, or use strategy='ddp'. LitCausalLM "
                "shards itself under ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1)."
            )

    def _make_reference(self, trainer: Trainer, module: LightningModule) -> None:
        needs = self.needs
        if needs.reference_nll and self._cacheable(trainer):
            self.caches = {role: CachedReference(role) for role in needs.reference_nll}
            for cache in self.caches.values():
                cache.build(trainer, module, self.likelihood)
        if needs.snapshot or needs.reference_logits or (needs.reference_nll and not self.caches):
            self.snapshot = SnapshotReference(module)

    def _restore_reference(self, state: dict[str, Any], module: LightningModule) -> None:
        if state["method"] != type(self).__name__:
            raise MisconfigurationException(
                f"The checkpoint is of a run with {state['method']}, not {type(self).__name__}. Resume with the same "
                "method, or load the weights and start a new run without ckpt_path."
            )
        for role, values in state["caches"].items():
            self.caches[role] = CachedReference(role)
            self.caches[role].load_state_dict(values)
        if state["snapshot"] is not None:
            self.snapshot = SnapshotReference(module)
            self.snapshot.load_state_dict(state["snapshot"])
        needs = self.needs
        uncached = not self.caches.keys() >= set(needs.reference_nll)
        if self.snapshot is None and (needs.snapshot or needs.reference_logits or uncached):
            raise MisconfigurationException(
                f"The checkpoint holds no reference model, but {type(self).__name__} needs one as it is set now. "
                "Resume with the settings that the run was started with."
            )

    def _cacheable(self, trainer: Trainer) -> bool:
        if self.reference == "snapshot":
            return False
        loaders = {role: row_loader(trainer.train_dataloader, role) for role in self.needs.reference_nll}
        for role, loader in loaders.items():
            rows = next(iter(loader), None) if loader is not None else None
            if isinstance(rows, dict) and "index" in rows:
                continue
            if self.reference == "cache":
                raise ValueError(
                    f"reference='cache' looks values up by row, but the {role} rows have no 'index'. Let the dataset "
                    "return dicts with a stable integer 'index', as ForgetRetainDataModule does, or use "
                    "reference='snapshot'."
                )
            return False
        if self.reference == "cache":
            return True
        sizes = {role: len(loader.dataset) for role, loader in loaders.items() if loader is not None}  # type: ignore[arg-type]
        return max(sizes.values()) <= _CACHED_ANSWERS * sizes["forget"]

    def _training_step(
        self, trainer: Trainer, module: LightningModule, batch: dict[str, Batch], batch_idx: int
    ) -> Tensor:
        self._check_batch(batch)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            for buffer, copy in self._statistics:
                copy.copy_(buffer)
            if not self._keeps_gradients:
                # Lightning drops the last gradients after the forward pass, which would need their memory.
                for optimizer in trainer.optimizers:
                    optimizer.zero_grad()
        if self.needs.reference_nll and self._steps == 0 and trainer.global_step == 0:
            self._check_drift(module, {role: batch[role] for role in self.needs.reference_nll})
        parts = self.step(module, batch)
        # One reduction a step: a loss that is not finite on any process is not finite in the mean either.
        means = mean_over_ranks(torch.stack([value.detach().float() for value in parts.values()]))
        logged = dict(zip(parts, means, strict=True))
        if not logged["loss"].isfinite():
            values = ", ".join(f"{name}={value.item():.6g}" for name, value in parts.items())
            self._stop(trainer, f"the loss is not finite ({values})")
        self._steps += 1
        module.log_dict(
            {f"unlearn/{name}": value for name, value in logged.items()},
            prog_bar=True,
            batch_size=row_count(batch[self.needs.roles[0]]),
        )
        return parts["loss"]

    def _check_batch(self, batch: Any) -> None:
        roles = self.needs.roles
        missing = [role for role in roles if not isinstance(batch, dict) or batch.get(role) is None]
        if missing:
            got = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
            raise MisconfigurationException(
                f"{type(self).__name__} needs {missing} in every training batch, but got {got}. Pass "
                f"trainer.fit(module, {{{', '.join(f'{role!r}: ...' for role in roles)}}}) or a "
                f"{next((_MAKERS[role] for role in missing if role in _MAKERS), 'ForgetRetainDataModule')}."
            )

    def _check_drift(self, module: LightningModule, rows: Mapping[str, Batch]) -> None:
        reference = self.reference_nll(module, rows)
        with without_gradients():
            readings = self.read(module, list(rows.values()))
        pairs = zip(readings, reference.values(), strict=True)
        drift = torch.cat([reading.nll - start for reading, start in pairs]).abs().mean().item()
        if drift > _REFERENCE_DRIFT:
            rank_zero_warn(
                f"Before the first update, {' and '.join(rows)} likelihoods differ from the reference by {drift:.3g} "
                "nats. The reference is read without dropout: switch dropout off for unlearning (module.eval() before "
                "fit, or p=0), or the objective starts from a random offset."
            )

    def _stop(self, trainer: Trainer, what: str) -> None:
        epoch, batch = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        for buffer, copy in self._statistics:  # the forward pass has put what is not finite into running statistics
            buffer.copy_(copy)
        saved = ""
        if trainer.checkpoint_callback is not None:
            folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
            path = Path(folder) / "last-finite.ckpt"
            trainer.save_checkpoint(path)
            saved = f" and are saved in {path}"
        raise FloatingPointError(
            f"{type(self).__name__}: {what} at step {trainer.global_step} (epoch {epoch}, batch {batch}). The weights "
            f"are those of the last finite step{saved}. Lower the learning rate, set gradient_clip_val=1.0, or use a "
            "bounded objective (NPO, SimNPO)."
        )

    def _give_back(self, module: LightningModule) -> None:
        if self._patch is None or module.__dict__.get("training_step") is not self._patch:
            return
        del module.training_step
        if self._shadowed is not None:
            module.training_step = self._shadowed  # type: ignore[method-assign]
        self._patch = self._shadowed = None


def _watches_zero_grad(trainer: Trainer, module: LightningModule) -> bool:
    """Whether someone's own hook may look at gradients until Lightning drops them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(
        overrides(module, hook, "LightningModule") for hook in ("on_before_zero_grad", "optimizer_zero_grad")
    ) or any(overrides(callback, "on_before_zero_grad", "Callback") for callback in callbacks)


def objective_score(method: str, trainer: Trainer) -> Score:
    """The score of the run's objective, for what stands beside it.

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
